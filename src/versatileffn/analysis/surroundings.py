"""What this package runs in: versions against what it requires, extras, devices, threads."""

import os
import shlex
import shutil
import tomllib
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch
from packaging.requirements import Requirement

from versatileffn.execution import native
from versatileffn.memory import available_memory
from versatileffn.provenance import ROOT, machine, versions

NAME = "versatileffn"
PURPOSES = {
    "hub": "data sets of the Hugging Face Hub",
    "eval": "the paper's eight tasks, the OLMo tokenizer",
    "gguf": "GGUF checkpoints",
    "lm-eval": "scores by lm-eval",
    "words": "clouds of words",
    "scale": "tokenize on Slurm or Ray",
    "docs": "the documentation as a site",
    "dev": "the tests",
}
"""What each extra is for."""
SHOWN = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "triton")


def surroundings() -> dict[str, Any]:
    """Everything, JSON-able: `versions`, `requirements`, `extras`, `devices`, `compiler`, and
    whether the `one_loop_kernel` is built."""
    required, extras = requirements()
    return {
        "versions": versions(*SHOWN),
        "requirements": install(required),
        "extras": {
            name: {"purpose": PURPOSES.get(name, ""), "install": install(needed)}
            for name, needed in extras.items()
        },
        "devices": devices(),
        "compiler": next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None),
        "one_loop_kernel": native.load() is not None,
    }


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What this package requires here, and what each of its extras does.

    A source tree says it itself, since what was installed from it may be older; else pip knows.
    """
    project = ROOT.parents[1] / "pyproject.toml"
    table = tomllib.loads(project.read_text("utf-8"))["project"] if project.is_file() else {}
    if table.get("name") == NAME:
        extras = table["optional-dependencies"]
        return applying(table["dependencies"]), {n: applying(extras[n]) for n in extras}
    try:
        names = metadata.metadata(NAME).get_all("Provides-Extra") or []
        listed = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return [], {}
    plain = applying(listed)
    return plain, {n: [r for r in applying(listed, n) if r not in plain] for n in names}


def applying(listed: Iterable[str], extra: str = "") -> list[Requirement]:
    """Those that hold on this system, for an extra if one is named."""
    needed = map(Requirement, listed)
    return [n for n in needed if n.marker is None or n.marker.evaluate({"extra": extra})]


def install(needed: Iterable[Requirement]) -> str | None:
    """The command that installs what is missing or of another version; None if nothing is."""
    lacking = [f"{need.name}{need.specifier}" for need in needed if not is_met(need)]
    return f"pip install {shlex.join(lacking)}" if lacking else None


def is_met(need: Requirement) -> bool:
    """Whether a distribution is installed in a version that is asked for."""
    try:
        return need.specifier.contains(metadata.version(need.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def devices() -> list[dict[str, Any]]:
    """The processor and each CUDA device: `device`, `name`, `free_bytes`, and what they have."""
    found = [{
        "device": "cpu", **machine(accelerator=False), "free_bytes": available_memory(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }]  # fmt: skip
    for index in range(torch.cuda.device_count()):
        found.append({
            "device": f"cuda:{index}", "name": torch.cuda.get_device_name(index),
            "free_bytes": available_memory(f"cuda:{index}"),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
        })  # fmt: skip
    return found
