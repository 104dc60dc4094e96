"""The one file of code: the same for the same sources, valid, no name with two meanings."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from versatileffn.errors import ConfigError
from versatileffn.portable.modules import ROOT
from versatileffn.portable.source import ENTRY, modelling_source, portable_source


@pytest.fixture
def sources(tmp_path) -> Path:
    """A copy of the package's sources, to be changed."""
    return shutil.copytree(ROOT, tmp_path / "versatileffn", ignore=shutil.ignore_patterns("*.pyc"))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_it_is_the_same_for_the_same_sources(sources):
    assert portable_source(ENTRY, sources) == modelling_source()


def test_a_changed_line_changes_it_and_its_digest(sources):
    change(
        sources / "execution" / "masked.py",
        "return step_MD if gains_L",
        "return  step_MD if gains_L",
    )
    changed = portable_source(ENTRY, sources).splitlines()
    ours = modelling_source().splitlines()
    different = [new for new, old in zip(changed, ours, strict=True) if new != old]
    assert len(different) == 2
    assert different[0].startswith("Sources: SHA-256")


def test_it_needs_nothing_of_ours_and_runs_no_text():
    tree = ast.parse(modelling_source())
    tries = {
        part for node in ast.walk(tree) if isinstance(node, ast.Try) for part in ast.walk(node)
    }
    modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n not in tries]
    assert not [name for name in modules if name and name.startswith("versatileffn")]
    called = {
        n.func.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    assert not called & {"exec", "eval", "compile"}
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert {"run_masked", "LinearController", "ReuseForCausalLM", "execute"} <= names
    assert not names & {"run_packed", "run_triton"}


def test_the_linter_finds_no_fault(tmp_path):
    file = tmp_path / "modeling_versatileffn.py"
    file.write_text(modelling_source(), encoding="utf-8")
    rules = ["--isolated", "--select", "E4,E7,E9,F,I"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *rules, str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("\n\ndef align():\n    pass\n", "both versatileffn.models.alignment's and"),
        ("\n\ndef sum():\n    pass\n", "hides Python's own"),
        ("\n\nimport numpy as F\n", "both torch.nn.functional's and numpy's"),
        ("\n\nfrom versatileffn.layer import Reuse as R\n", "under another name"),
        ("\n\nfrom versatileffn.execution.select import run_packed\n", "no module of the portable"),
    ],
)
def test_a_name_with_two_meanings_is_an_error(sources, added, says):
    with (sources / "models" / "pretrained.py").open("a", encoding="utf-8") as file:
        file.write(added)
    with pytest.raises(ConfigError, match=says):
        portable_source(ENTRY, sources)
