"""Every case of `versatileffn bench`, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

DTYPES = ("float32", "bfloat16")
SIZES = ((1024, 4096), (512, 2048))
TOKENS = (512, 2048)
TRAINED = "trained"


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        name: unique, `kind/…`.
        kind: which function measures it, see `worker.py`.
        settings: its arguments, JSON.
        environment: of the process, `tuned` or `default`, see `machine.py`.
        budget: fields of `timing.Budget`.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    environment: str = "tuned"
    budget: dict[str, Any] = field(default_factory=dict)

    def inputs(self) -> dict[str, Any]:
        """Everything that decides what is measured."""
        return {
            "kind": self.kind,
            "settings": self.settings,
            "environment": self.environment,
            "budget": self.budget,
        }


EXECUTORS = ("dense", "straightforward", "masked", "packed", "recompute")
KINDS = ("inference", "width", "others", "training", "memory", "decode", "model", "allocator")


def suite(
    shares: Mapping[str, Sequence[float]], seed: int, quick: bool = False, cuda: bool = False
) -> list[Case]:
    """All cases.

    Args:
        shares: loop distributions by name; `trained` may be among them.
        seed: of weights, hidden states and the order of loop counts.
        quick: tiny sizes and few rounds, through the same code.
        cuda: also sizes that fill a GPU.
    """
    lists = {name: [float(value) for value in values] for name, values in shares.items()}
    if quick:
        return _quick(lists, seed)
    tokens = (*TOKENS, 16384) if cuda else TOKENS
    return [
        *_inference(lists, seed, SIZES, tokens, DTYPES),
        *_training(lists, seed, SIZES, 1024, DTYPES),
        *_memory(lists, seed, SIZES[0], 1024, DTYPES, EXECUTORS),
        *_decode(seed, SIZES, (1, 8, 32), DTYPES, 128 * 2**20),
        *_models(lists, seed, MODEL, DTYPES, {"prefill": 512, "decode": 64, "training": 256}),
        *_reproduction(lists, seed),
        *_allocator(lists, seed, SIZES[0], 2048),
    ]


MODEL = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}
TINY_MODEL = {**MODEL, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64} | {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
REPRODUCTION = {**MODEL, "hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 3}
"""The model of `versatileffn reproduce --scale tiny`."""
QUICK = {"rounds": 3, "seconds": 0.5, "least": 2}


def _quick(shares: dict[str, list[float]], seed: int) -> list[Case]:
    size = (64, 128)
    few = {name: shares[name] for name in ("1.4", "2.5", TRAINED) if name in shares}
    lengths = {"prefill": 16, "decode": 8, "training": 16}
    cases = [
        *_inference(few, seed, [size], [64], DTYPES),
        *_training(few, seed, [size], 64, DTYPES),
        *_memory({"2.5": shares["2.5"]}, seed, size, 32, ["float32"], ("packed", "recompute")),
        *_decode(seed, [size], (1, 8), ["bfloat16"], 2**17),
        *_models({"2.5": shares["2.5"]}, seed, TINY_MODEL, ["float32"], lengths),
        *_allocator(shares, seed, size, 64),
    ]
    return [replace(case, budget=QUICK) for case in cases]


def _layer(size: tuple[int, int], dtype: str, seed: int, **more: Any) -> dict[str, Any]:
    return {"d_model": size[0], "d_hidden": size[1], "dtype": dtype, "seed": seed, **more}


def _inference(
    shares: dict[str, list[float]],
    seed: int,
    sizes: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    dtypes: Sequence[str],
) -> list[Case]:
    cases = []
    for size in sizes:
        for count in tokens:
            for dtype in dtypes:
                place = f"d{size[0]}/m{count}/{dtype}"
                for name, values in shares.items():
                    layer = _layer(size, dtype, seed, tokens=count, shares=values)
                    # `masked` runs all loops whatever the distribution: once is enough.
                    executors = ["packed", "masked"] if name == "2.5" else ["packed"]
                    settings = {**layer, "executors": executors}
                    cases.append(Case(f"inference/{place}/{name}", "inference", settings))
                even = _layer(size, dtype, seed, tokens=count, shares=shares["2.5"])
                ones = {**even, "shares": [1.0, 0.0, 0.0, 0.0]}
                cases.append(Case(f"others/{place}", "others", even))
                cases.append(Case(f"width/{place}/1.0", "width", ones))
                cases.append(Case(f"width/{place}/2.5", "width", even))
    return [replace(case, budget={"seconds": 3.0}) for case in cases]


def _training(
    shares: dict[str, list[float]],
    seed: int,
    sizes: Sequence[tuple[int, int]],
    tokens: int,
    dtypes: Sequence[str],
) -> list[Case]:
    cases = []
    for size in sizes:
        for dtype in dtypes:
            for name, values in shares.items():
                executors = ["packed", "recompute"] + ["masked"] * (name == "2.5")
                layer = _layer(size, dtype, seed, tokens=tokens, shares=values)
                settings = {**layer, "executors": executors}
                place = f"d{size[0]}/m{tokens}/{dtype}/{name}"
                budget = {"seconds": 5.0, "least": 5}
                cases.append(Case(f"training/{place}", "training", settings, budget=budget))
    return cases


def _memory(
    shares: dict[str, list[float]],
    seed: int,
    size: tuple[int, int],
    tokens: int,
    dtypes: Sequence[str],
    executors: Sequence[str],
) -> list[Case]:
    cases = []
    for dtype in dtypes:
        for name in ("1.4", "2.5", "4.0"):
            if name in shares:
                layer = _layer(size, dtype, seed, tokens=tokens, shares=shares[name])
                settings = {**layer, "executors": list(executors), "peak": name == "2.5"}
                cases.append(Case(f"memory/d{size[0]}/{dtype}/{name}", "memory", settings))
    return cases


def _decode(
    seed: int,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    dtypes: Sequence[str],
    weight_bytes: int,
) -> list[Case]:
    return [
        Case(
            f"decode/d{size[0]}/b{batch}/{dtype}",
            "decode",
            _layer(size, dtype, seed, tokens=batch, weight_bytes=weight_bytes),
            budget={"rounds": 40, "seconds": 4.0},
        )
        for size in sizes
        for batch in batches
        for dtype in dtypes
    ]


def _models(
    shares: dict[str, list[float]],
    seed: int,
    shape: dict[str, Any],
    dtypes: Sequence[str],
    lengths: dict[str, int],
) -> list[Case]:
    cases = []
    for work, length in lengths.items():
        for dtype in dtypes:
            for name in (n for n in ("1.4", "2.5", TRAINED) if n in shares):
                settings = {
                    "work": work,
                    "shape": shape,
                    "sequences": 8 if work == "decode" else 4,
                    "length": length,
                    "shares": shares[name],
                    "dtype": dtype,
                    "executors": ["auto", "packed", "recompute"]
                    if work == "training"
                    else ["auto"],
                    "seed": seed,
                }
                budget = {"rounds": 15, "seconds": 4.0, "least": 5}
                cases.append(Case(f"model/{work}/{dtype}/{name}", "model", settings, budget=budget))
    return cases


def _reproduction(shares: dict[str, list[float]], seed: int) -> list[Case]:
    """The training step of the smallest reproduction: packed against masked."""
    settings = {
        "work": "training",
        "shape": REPRODUCTION,
        "sequences": 2,
        "length": 256,
        "shares": shares[TRAINED] if TRAINED in shares else shares["2.5"],
        "dtype": "float32",
        "executors": ["auto", "masked"],
        "seed": seed,
    }
    budget = {"rounds": 40, "seconds": 20.0, "least": 10}
    return [Case("model/reproduction/float32/tiny", "model", settings, budget=budget)]


def _allocator(
    shares: dict[str, list[float]], seed: int, size: tuple[int, int], tokens: int
) -> list[Case]:
    settings = _layer(size, "float32", seed, tokens=tokens, shares=shares["2.5"])
    return [
        Case(f"allocator/{environment}", "allocator", settings, environment)
        for environment in ("tuned", "default")
    ]
