"""Every case, as data: what is measured, and for how long."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks import layers
from benchmarks.distributions import SHARES
from benchmarks.models import model

FUNCTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "inference": layers.executors_in_turns,
    "width": layers.width,
    "training": partial(layers.executors_in_turns, training=True),
    "memory": layers.memory,
    "decode": layers.decode,
    "model": model,
}
BUDGET = {"rounds": 40, "seconds": 4.0, "least": 5}
BRIEF = {"rounds": 2, "seconds": 0.5, "least": 2}
"""Arguments of `speed.measure`; `BRIEF` where it is only to be seen that it works."""
MODEL = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}
TINY_MODEL = MODEL | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TINY = {"d_model": 32, "d_hidden": 64, "tokens": 40, "weight_bytes": 2**17, "length": 16}
QUICK = (
    "inference/d1024/m512/bfloat16/2.5",
    "width/d1024/m512/bfloat16/*",
    "training/d1024/*/bfloat16/2.5",
    "memory/d1024/bfloat16/2.5",
    "decode/d1024/*/bfloat16",
    "model/*/float32/2.5",
    "*/cuda/d1024/2.5",
    "decode/cuda/d1024/*",
)
"""Cases that stand for all of their kind in a quick run, with `TINY` settings."""
Case = tuple[str, dict[str, Any]]
"""A name, unique and beginning with the kind, and the arguments of the kind's function, JSON."""


def all_cases(device: str, quick: bool) -> dict[str, dict[str, Any]]:
    """All cases of a device; with `quick` a few, tiny, through the same code."""
    cases = dict(_on_cpu() if device == "cpu" else _on_cuda())
    if not quick:
        return cases
    few = {n: s for n, s in cases.items() if any(fnmatchcase(n, pattern) for pattern in QUICK)}
    return {name: _tiny(settings) for name, settings in few.items()}


def _tiny(settings: dict[str, Any]) -> dict[str, Any]:
    small = settings | {k: min(settings[k], most) for k, most in TINY.items() if k in settings}
    if "shape" in small:
        small["shape"] = TINY_MODEL
    if "device" in small and not torch.cuda.is_available():
        small |= {"device": "cpu", "dtype": "float32"}  # Triton's interpreter knows no bfloat16
    return small


def _on_cpu() -> Iterator[Case]:
    """Layers of two sizes, and a model at each kind of work."""
    for d_model, dtype in product((1024, 512), ("float32", "bfloat16")):
        base = {"d_model": d_model, "d_hidden": 4 * d_model, "dtype": dtype}
        yield from _layer(f"d{d_model}", dtype, base)
    works, means = {"prefill": 512, "decode": 64, "training": 256}, ("1.4", "2.5", "trained")
    for work, dtype, mean in product(works, ("float32", "bfloat16"), means):
        yield (
            f"model/{work}/{dtype}/{mean}",
            {
                "work": work,
                "shape": MODEL,
                "sequences": 8 if work == "decode" else 4,
                "length": works[work],
                "shares": list(SHARES[mean]),
                "dtype": dtype,
                "executors": ["auto"] + ["packed", "recompute"] * (work == "training"),
            },
        )


def _layer(size: str, dtype: str, base: dict[str, Any]) -> Iterator[Case]:
    """One layer at each kind of work."""
    for mean, values in SHARES.items():
        shares = list(values)
        # `masked` runs all loops whatever the distribution: once is enough.
        executors = ["packed", "recompute"] + ["masked"] * (mean == "2.5")
        training = {**base, "tokens": 1024, "shares": shares}
        yield f"training/{size}/m1024/{dtype}/{mean}", training | {"executors": executors}
        if size != "d512" and mean in ("1.4", "2.5", "4.0"):
            yield f"memory/{size}/{dtype}/{mean}", training
        executors = [name for name in executors if name != "recompute"]
        for tokens in (512, 2048):
            inference = {**base, "tokens": tokens, "shares": shares, "executors": executors}
            yield f"inference/{size}/m{tokens}/{dtype}/{mean}", inference
    for tokens, mean in product((512, 2048), ("1.0", "2.5")):
        shares = list(SHARES["2.5"]) if mean == "2.5" else [1.0, 0.0, 0.0, 0.0]
        width = {**base, "tokens": tokens, "shares": shares}
        yield f"width/{size}/m{tokens}/{dtype}/{mean}", width
    for batch in (1, 8, 32):
        decode = {**base, "tokens": batch, "weight_bytes": 128 * 2**20}
        yield f"decode/{size}/b{batch}/{dtype}", decode


def _on_cuda() -> Iterator[Case]:
    """What the kernels are held to."""
    for size in (1024, 2048):
        base = {"d_model": size, "d_hidden": 4 * size, "dtype": "bfloat16", "device": "cuda"}
        for mean, shares in SHARES.items():
            layer = {**base, "tokens": 16384, "shares": list(shares)}
            fast = {"executors": ["masked", "triton", "triton-graph"], "against": "packed"}
            yield f"inference/cuda/d{size}/{mean}", layer | fast
            if mean in ("1.4", "2.5"):
                states = {"executors": ["packed", "recompute"], "against": "masked"}
                yield f"training/cuda/d{size}/{mean}", layer | states
        for batch in (1, 8, 32):
            weights = {"weight_bytes": 12 * 24 * size**2, "executor": "triton", "against": "packed"}
            yield f"decode/cuda/d{size}/b{batch}", {**base, "tokens": batch, **weights}
