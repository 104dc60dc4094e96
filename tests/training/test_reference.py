"""The reference of the YAML file is rendered from what checks it, and the page is its copy."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from versatileffn.cli.main import app
from versatileffn.ffn.knobs import knobs
from versatileffn.training.config import TrainConfig
from versatileffn.training.config_file import dotted_keys
from versatileffn.training.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_the_rendered_reference():
    """To write it: `versatileffn train --help-config > docs/configuration.md`."""
    assert PAGE.read_text() == reference() + "\n"


def test_every_key_is_in_it_once_in_its_section():
    found, section = [], ""
    for line in reference().splitlines():
        if line.startswith("## "):
            section = line[3:]
        if line.startswith("| `"):
            found.append(f"{section}.{line.split('`')[1]}")
            assert len(line.split(" | ")[-1]) > 8, line  # a description
    wanted = [key for key in dotted_keys(TrainConfig) if "." in key]
    wanted += ["model.ffn.variant", *(f"model.ffn.{knob.name}" for knob in knobs())]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize(("key", "words"), [
    ("learning_rate", "| number > 0 | **required** |"),
    ("adam_beta2", "| number ≥ 0, < 1 | `0.95` |"),
    ("eval_windows", "| whole number ≥ 1, ≤ 2^40 or null | null |"),
    ("hidden_act", "| `silu`, `gelu`, `gelu_pytorch_tanh`, `relu` | `silu` |"),
    ("d_expert", "| moe, versatile | whole number or null | null |"),
    ("ffn", "| mapping, see below | left out |"),
    ("tau", "| mapping, see below | see below |"),
    ("architecture", "| mapping, see below | left out |"),
])  # fmt: skip
def test_types_limits_and_defaults_are_the_schemas(key, words):
    assert f"| `{key}` {words}" in reference()


def test_the_command_prints_it_without_a_file():
    result = CliRunner().invoke(app, ["train", "--help-config"])
    assert result.exit_code == 0
    assert result.stdout == reference() + "\n"
