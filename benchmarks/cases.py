"""Every case, as data: what is measured, and for how long."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import layers
from benchmarks.distributions import SHARES
from benchmarks.models import model

FUNCTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "inference": layers.inference,
    "width": layers.width,
    "training": layers.training,
    "memory": layers.memory,
    "decode": layers.decode,
    "model": model,
}
DTYPES = ("float32", "bfloat16")
MODEL = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}
REPRODUCTION = MODEL | {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 3}
"""The model of `versatileffn reproduce --scale tiny`."""


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        name: unique, `kind/…`.
        kind: which function measures it, see `FUNCTIONS`.
        settings: its arguments, JSON.
        budget: arguments of `speed.measure`.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    budget: dict[str, Any] = field(default_factory=dict)

    def inputs(self) -> dict[str, Any]:
        """Everything that decides what is measured."""
        return {"kind": self.kind, "settings": self.settings, "budget": self.budget}

    def measure(self) -> dict[str, Any]:
        """What is found."""
        return FUNCTIONS[self.kind](budget=self.budget, **self.settings)


def all_cases(device: str, quick: bool = False) -> list[Case]:
    """All cases of a device; with `quick` one of each kind, tiny, through the same code."""
    brief = {"rounds": 2, "seconds": 0.5, "least": 2}
    if device != "cpu":
        if quick:
            return [replace(case, budget=brief) for case in _on_cuda(32, 40, "cpu", ("2.5",))]
        return [case for size in (1024, 2048) for case in _on_cuda(size, 16384, "cuda")]
    if not quick:
        return [
            *(case for size in ((1024, 4096), (512, 2048)) for case in _layers(*size)),
            *_models(MODEL, {"prefill": 512, "decode": 64, "training": 256}),
            _reproduction(),
        ]
    tiny = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    lengths = {"prefill": 16, "decode": 8, "training": 16}
    models = _models(MODEL | tiny, lengths, ("float32",), ("2.5",))
    layers = _layers(64, 128, (64,), 64, ("bfloat16",), ("2.5",), 2**17)
    return [replace(case, budget=brief) for case in (*layers, *models)]


def _on_cuda(
    size: int, tokens: int, device: str, means: tuple[str, ...] = tuple(SHARES)
) -> Iterator[Case]:
    """What the kernels are held to; on a CPU, in Triton's interpreter, in float32."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    base = {"d_model": size, "d_hidden": 4 * size, "dtype": dtype, "seed": 0, "device": device}
    budget = {"rounds": 15, "seconds": 4.0, "least": 5, "warmup": 2}
    fast = {"executors": ["masked", "triton", "triton-graph"], "against": "packed"}
    for mean in means:
        layer = {**base, "tokens": tokens, "shares": list(SHARES[mean])}
        yield Case(f"inference/cuda/d{size}/{mean}", "inference", layer | fast, budget)
        if mean in ("1.4", "2.5"):
            states = {"executors": ["packed", "recompute"], "against": "masked"}
            yield Case(f"training/cuda/d{size}/{mean}", "training", layer | states, budget)
    for batch in (1, 8, 32):
        weights = {"weight_bytes": 12 * 24 * size**2, "executor": "triton", "against": "packed"}
        settings = {**base, "tokens": batch, **weights}
        yield Case(f"decode/cuda/d{size}/b{batch}", "decode", settings, budget)


def _layers(
    d_model: int,
    d_hidden: int,
    inference_tokens: tuple[int, ...] = (512, 2048),
    training_tokens: int = 1024,
    dtypes: tuple[str, ...] = DTYPES,
    means: tuple[str, ...] = tuple(SHARES),
    decode_bytes: int = 128 * 2**20,
) -> Iterator[Case]:
    """Cases of one layer's size."""
    even, once = list(SHARES["2.5"]), [1.0, 0.0, 0.0, 0.0]
    for dtype in dtypes:
        base = {"d_model": d_model, "d_hidden": d_hidden, "dtype": dtype, "seed": 0}
        for tokens in inference_tokens:
            place, brief = f"d{d_model}/m{tokens}/{dtype}", {"seconds": 3.0}
            layer = {**base, "tokens": tokens}
            for mean in means:
                # `masked` runs all loops whatever the distribution: once is enough.
                executors = ["packed"] + ["masked"] * (mean == "2.5")
                settings = {**layer, "shares": list(SHARES[mean]), "executors": executors}
                yield Case(f"inference/{place}/{mean}", "inference", settings, brief)
            yield Case(f"width/{place}/1.0", "width", {**layer, "shares": once}, brief)
            yield Case(f"width/{place}/2.5", "width", {**layer, "shares": even}, brief)
        for mean in means:
            layer = {**base, "tokens": training_tokens, "shares": list(SHARES[mean])}
            executors = ["packed", "recompute"] + ["masked"] * (mean == "2.5")
            name = f"training/d{d_model}/m{training_tokens}/{dtype}/{mean}"
            long = {"seconds": 5.0, "least": 5}
            yield Case(name, "training", {**layer, "executors": executors}, long)
            if d_model != 512 and mean in ("1.4", "2.5", "4.0"):
                yield Case(f"memory/d{d_model}/{dtype}/{mean}", "memory", layer)
        for batch in (1, 8, 32):
            settings = {**base, "tokens": batch, "weight_bytes": decode_bytes}
            budget = {"rounds": 40, "seconds": 4.0}
            yield Case(f"decode/d{d_model}/b{batch}/{dtype}", "decode", settings, budget)


def _models(
    shape: dict[str, Any],
    lengths: dict[str, int],
    dtypes: tuple[str, ...] = DTYPES,
    means: tuple[str, ...] = ("1.4", "2.5", "trained"),
) -> Iterator[Case]:
    """Cases of whole models."""
    for work, length in lengths.items():
        for dtype in dtypes:
            for mean in means:
                settings = {
                    "work": work,
                    "shape": shape,
                    "sequences": 8 if work == "decode" else 4,
                    "length": length,
                    "shares": list(SHARES[mean]),
                    "dtype": dtype,
                    "executors": ["auto"] + ["packed", "recompute"] * (work == "training"),
                    "seed": 0,
                }
                budget = {"rounds": 15, "seconds": 4.0, "least": 5}
                yield Case(f"model/{work}/{dtype}/{mean}", "model", settings, budget)


def _reproduction() -> Case:
    """The training step of the smallest reproduction: packed against masked."""
    settings = {
        "work": "training",
        "shape": REPRODUCTION,
        "sequences": 2,
        "length": 256,
        "shares": list(SHARES["trained"]),
        "dtype": "float32",
        "executors": ["auto", "masked"],
        "seed": 0,
    }
    budget = {"rounds": 40, "seconds": 20.0, "least": 10}
    return Case("model/reproduction/float32/tiny", "model", settings, budget)
