"""Compilers and exporters, beside the eager model: every result within `BOUND`, at other shapes.

`walk` runs each tool in a process of its own; as a script, with a tool's name and a saved model,
this file is that process and prints the outcome.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CompileConfig

import versatileffn  # noqa: F401, registers the models

HERE = Path(__file__)
sys.path[:0] = [str(HERE.parents[1])]

from portable.page import snippet  # noqa: E402

BOUND = 1e-4
"""The most that logits of float32, around 10 in size, may be off: sums are in another order."""
SHAPES = ((2, 9), (3, 17), (2, 33))
"""B and T: what is traced with, and what must work without another graph."""
SIZES = {0: torch.export.Dim("B", min=2, max=64), 1: torch.export.Dim("T", min=2, max=64)}


class Logits(nn.Module):
    """A model as an exporter wants it: token ids [B, T] -> logits [B, T, V]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Without a cache."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def ids_of(*shape: int) -> Tensor:
    """Tokens that any of our models knows."""
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(1))


def compared(run: Callable[[Tensor], Tensor], logits: Logits) -> str:
    """The outcome, once the results are right at every shape."""
    off = [(run(ids_of(*shape)) - logits(ids_of(*shape))).abs().max().item() for shape in SHAPES]
    assert max(off) <= BOUND, f"logits are off by {max(off):.2g}, more than {BOUND:g}"
    return f"logits of {len(SHAPES)} shapes differ by {max(off):.1g} at most"


def compiled(model: Any) -> str:
    """One graph for every shape, with the operator of the fast executors in it."""
    torch._dynamo.reset()
    logits, graphs = Logits(model), torch._dynamo.utils.counters["stats"]
    found = compared(torch.compile(logits, dynamic=True, fullgraph=True), logits)
    assert graphs["unique_graphs"] == 1, f"{graphs['unique_graphs']} graphs were made"
    return f"works: {found}, one graph"


def static_cache(model: Any) -> str:
    """`generate` with a static cache, whose decoding step it compiles."""
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    compiling = CompileConfig(fullgraph=True, dynamic=True)
    compiling._compile_all_devices = True  # Transformers compiles on a CPU only when told to
    expected = model.generate(ids_of(2, 9), **asked)
    torch._dynamo.reset()
    found = model.generate(
        ids_of(2, 9), cache_implementation="static", compile_config=compiling, **asked
    )
    assert torch.equal(found, expected), "other tokens were generated"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"], "nothing was compiled"
    return "works: the same tokens"


def program(logits: Logits) -> Any:
    """The graph of masked execution, for any batch and length."""
    return torch.export.export(
        logits, (ids_of(*SHAPES[0]),), dynamic_shapes={"input_ids": SIZES}, strict=False
    )


def exported(model: Any) -> str:
    """Saved, loaded and run."""
    logits = Logits(model)
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program(logits), Path(folder, "model.pt2"))
        return f"works: {compared(torch.export.load(Path(folder, 'model.pt2')).module(), logits)}"


def onnx(model: Any) -> str:
    """Run by ONNX Runtime."""
    import onnxruntime

    logits = Logits(model)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "model.onnx"))
        torch.onnx.export(program(logits), f=file, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(file)
        name = session.get_inputs()[0].name

        def run(ids: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: ids.numpy()})[0])

        return f"works: {compared(run, logits)}"


def aot_inductor(model: Any) -> str:
    """A package of compiled code, that needs neither this package nor Transformers."""
    logits = Logits(model)
    names: dict[str, Any] = {"logits": logits, "ids": ids_of(*SHAPES[0]), "torch": torch}
    names["sizes"] = {"input_ids": SIZES}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(snippet("aoti_load_package"), names)
        return f"works: {compared(names['run'], logits)}"


TOOLS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "torch.compile": ("torch", compiled),
    "generate with a static cache": ("torch", static_cache),
    "torch.export": ("torch", exported),
    "torch.onnx.export": ("onnxruntime", onnx),
    "AOTInductor": ("torch", aot_inductor),
}
"""The package whose version the table names, and what is done."""


def walk(version: str, place: Path) -> list[dict[str, str]]:
    """Rows of the table.

    Args:
        version: of Transformers.
        place: a folder for it.
    """
    from portable.environment import with_package
    from support.models import make_model

    model = place / "compiled"
    make_model(reuse_gains="learned", num_hidden_layers=1).save_pretrained(model)
    needed = ("onnx", "onnxscript", "onnxruntime")
    there = with_package(place / "venv-compilers", place, version, *needed)
    rows = []
    for tool, (package, _) in TOOLS.items():
        beside = f"{there.version(package)}, beside Transformers {version}"
        outcome = there.outcome(HERE, tool, str(model))
        rows.append({"tool": tool, "version": beside, "outcome": outcome})
    return rows


if __name__ == "__main__":
    with torch.no_grad():
        print(TOOLS[sys.argv[1]][1](AutoModelForCausalLM.from_pretrained(sys.argv[2]).eval()))
