"""The wheel and the sdist: built from a clean clone, looked into, installed where nothing is.

    python tests/portable/wheel.py --out dist [--first torch==2.13.0]

The last commit is cloned; an sdist is made of it, and the wheel of the sdist, which has to have
every file of the package. Then the wheel is installed, from the index with all that it needs, in a
virtual environment that has nothing but what --first names, outside of the clone. There run the
README's Python block, and `versatileffn` with `--version`, `doctor`, `export` and `verify`.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent)]

from portable.environment import Environment  # noqa: E402

BUILDER = "build>=1.2"
MAKE_DENSE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from versatileffn.data.tokenizers import train_bpe
torch.manual_seed(0)
shape = dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4)).save_pretrained("dense")
train_bpe(["a text of some words"] * 3, 300).save_pretrained("dense")
import versatileffn
assert versatileffn.__file__.startswith(sys.prefix), versatileffn.__file__
"""


def build(work: Path, out: Path) -> Path:
    """Wheel and sdist of the last commit.

    Returns:
        the wheel.
    """
    clone = work / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    builder = Environment(work / "venv-build", work, [BUILDER])
    done = builder.run("python", "-m", "build", str(clone), "--outdir", str(work / "dist"))
    assert done.returncode == 0, done.stderr
    (wheel,) = (work / "dist").glob("*.whl")
    assert list((work / "dist").glob("*.tar.gz")), "no sdist"
    lacking = files_of(clone) ^ contents(wheel)
    assert not lacking, f"in the clone or the wheel alone: {sorted(lacking)}"
    out.mkdir(parents=True, exist_ok=True)
    for file in (work / "dist").iterdir():
        shutil.copy(file, out)
    return wheel


def files_of(clone: Path) -> set[str]:
    """Every file of the package that git knows."""
    asked = ["git", "-C", str(clone), "ls-files", "src/versatileffn"]
    listed = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    return {name.removeprefix("src/") for name in listed}


def contents(wheel: Path) -> set[str]:
    """Every file of the package in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {n for n in archive.namelist() if n.startswith("versatileffn/")}


def try_out(wheel: Path, work: Path, first: list[str]) -> None:
    """Install a wheel where nothing is, and use it."""
    place = work / "elsewhere"
    place.mkdir()
    there = Environment(place / "venv", place, *([first] if first else []), [str(wheel)])

    def run(program: str, *words: str) -> str:
        done = there.run(program, *words, patience=1800)
        assert done.returncode == 0, f"{program} {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    run("python", "-c", MAKE_DENSE)
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert block is not None, "the README has no Python block"
    code = block[1].replace('"path-or-hub-id"', '"dense"')
    assert code != block[1], "the README's block names another source"
    (place / "block.py").write_text(code, encoding="utf-8")
    assert "Once upon a time" in run("python", "block.py")
    version = run("versatileffn", "--version").split()[-1]
    assert f"-{version}-" in wheel.name, f"{version} is installed from {wheel.name}"
    assert "WRONG" not in run("versatileffn", "doctor", "reused")
    run("versatileffn", "export", "reused", "exported")
    run("versatileffn", "verify", "exported")
    print(f"works: {wheel.name} beside torch {there.version('torch')} and Transformers "
          f"{there.version('transformers')}")  # fmt: skip


def main() -> None:
    """Build, look, install, use."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for wheel and sdist")
    parser.add_argument("--first", action="append", default=[], help="package to install before")
    parser.add_argument("--build-only", action="store_true", help="build, and look into the wheel")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder), options.out)
        if not options.build_only:
            try_out(wheel, Path(folder), options.first)


if __name__ == "__main__":
    main()
