"""lighteval and mergekit, which load a model by its name, in environments without this package."""

import shutil
from pathlib import Path

from safetensors.torch import load_file

from portable.cases import models, write_case
from portable.environment import Environment

RECIPE = """
merge_method: linear
dtype: float32
models:
- {{model: {first}, parameters: {{weight: 0.5}}}}
- {{model: {second}, parameters: {{weight: 0.5}}}}
"""


def walk(version: str, place: Path) -> list[dict[str, str]]:
    """A row for each, beside this version of Transformers."""
    model = place / "one" / "learned" / "out"
    if not model.is_dir():
        write_case(place / "one", "learned", models()["learned"])
    rows = []
    for name, outcome in (("lighteval", _score), ("mergekit", _merge)):
        wanted = [["torch"], [f"transformers=={version}", name]]
        there = Environment(place / f"venv-{name}", place, *wanted)
        assert not there.version("versatileffn"), "the package is installed there"
        beside = f"{there.version(name)}, beside Transformers {version}"
        rows.append({"tool": name, "version": beside, "outcome": outcome(there, model)})
    return rows


def _score(there: Environment, model: Path) -> str:
    return there.outcome(Path(__file__).with_name("lighteval_there.py"), str(model))


def _merge(there: Environment, model: Path) -> str:
    """The mean of a model and itself, in another folder, is the model."""
    twin, merged, recipe = (there.work / name for name in ("twin", "merged", "recipe.yaml"))
    for folder in (twin, merged):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, twin)
    recipe.write_text(RECIPE.format(first=model, second=twin), "utf-8")
    done = there.run("mergekit-yaml", str(recipe), str(merged), "--trust-remote-code")
    if done.returncode:
        return f"fails: {done.stderr.strip().splitlines()[-1]}"
    before, after = (load_file(folder / "model.safetensors") for folder in (model, merged))
    assert before.keys() == after.keys(), "weights were left out"
    assert all(after[name].equal(weight.float()) for name, weight in before.items())
    assert (merged / "modeling_versatileffn.py").is_file()
    return f"works: the mean of two models, {len(after)} tensors and the code"
