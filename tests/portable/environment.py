"""A virtual environment of its own, and programs in it."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path


class Environment:
    """A virtual environment; one that was completed before is used as it is.

    Args:
        folder: of the environment.
        work: where programs run.
        wanted: packages from the index, in groups that are installed one after the other.
        sources: put in front of the path, for a package that isn't installed there.
    """

    def __init__(self, folder: Path, work: Path, *wanted: list[str], sources: str = "") -> None:
        self.bin, self.work = folder / "bin", work
        done = folder / "installed.txt"
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            for group in wanted:
                subprocess.run([str(self.bin / "pip"), "install", "-q", *group], check=True)
            done.write_text("".join(f"{' '.join(group)}\n" for group in wanted))
        names = ("PYTHONPATH", "HF_HUB_OFFLINE", "VIRTUAL_ENV")
        self.variables = {k: v for k, v in os.environ.items() if k not in names} | {
            "HF_HOME": str(work / "hf"), "OMP_NUM_THREADS": "1", "PYTHONPATH": sources,
        }  # fmt: skip

    def run(
        self, program: str, *words: str, offline: bool = True, patience: float = 600
    ) -> subprocess.CompletedProcess:
        """A program of the environment, to its end or for so many seconds."""
        variables = self.variables | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        return subprocess.run(
            [str(self.bin / program), *words],
            env=variables, cwd=self.work, capture_output=True, text=True, timeout=patience,
        )  # fmt: skip

    def version(self, name: str) -> str:
        """Of an installed package, whatever device it is built for."""
        asked = f"import importlib.metadata as m; print(m.version({name!r}))"
        return self.run("python", "-c", asked).stdout.strip().partition("+")[0]

    def outcome(self, script: Path, *words: str, patience: float = 1800) -> str:
        """The last line that a script prints, or the last of its complaint."""
        try:
            done = self.run("python", str(script), *words, patience=patience)
        except subprocess.TimeoutExpired:
            return f"fails: not done after {patience:g} s"
        if done.returncode:
            return f"fails: {done.stderr.strip().splitlines()[-1]}"
        return done.stdout.splitlines()[-1]


def with_package(folder: Path, work: Path, version: str, *tools: str) -> Environment:
    """An environment with tools, one Transformers, and what the package in this checkout needs.

    Args:
        folder, work: of `Environment`.
        version: of Transformers.
        tools: packages.
    """
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [n for n in project["dependencies"] if not n.startswith(("torch>", "transformers"))]
    return Environment(
        folder, work, ["torch"], [f"transformers=={version}", *needed, *tools],
        sources=str(root / "src"),
    )  # fmt: skip
