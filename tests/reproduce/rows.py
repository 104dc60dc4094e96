"""Result rows with made-up numbers, for tests of what is computed and drawn from them."""

from typing import Any

from versatileffn.evaluation.loops import LayerUse
from versatileffn.reproduce.protocol import protocol
from versatileffn.reproduce.results import Loss, Row, finite, summarize

SIZES = [700, 250, 50]  # tokens of the held-out documents
LOSSES = {"base": 4.0, "dense": 3.8, "4-loop": 3.7, "moe": 3.75, "versatile": 3.9}

# The loss is spread evenly over the tokens, but for what `4-loop` shifts between documents.
SHIFT = [10.0, -12.0, 2.0]
UNEVEN = {
    arm: [(size, shift * (arm == "4-loop")) for size, shift in zip(SIZES, SHIFT, strict=True)]
    for arm in LOSSES
}


def layer(loops: bool) -> LayerUse:
    if loops:
        return LayerUse(2.5, [0.25, 0.25, 0.25, 0.25], 0.375, [0.125] * 8)
    return LayerUse(None, None, None, [0.2, 0.05] + [0.125] * 6)


def row(arm: str, seed: int, loss: float) -> Row:
    has_layers = arm in ("versatile", "moe")
    return Row(
        arm=arm,
        title=arm.title(),
        seed=seed,
        parameters=1_500_000,
        flops_paper=2e6,
        flops_ours=1.5e6,
        flops_executed=1.5e6,
        flops_controller=1e4,
        before=None if arm == "base" else 5.0,
        after=Loss(loss, loss / 2, 1000, SIZES, [size * loss + own for size, own in UNEVEN[arm]]),
        tokens_per_second=12_345.6,
        curve=[(0, 5.0), (1000, loss + 0.5), (2000, loss)],
        mean_loops=2.5 if arm == "versatile" else None,
        share_below_max=0.75 if arm == "versatile" else None,
        layers=[layer(arm == "versatile")] * 2 if has_layers else [],
    )


def rows(seeds: int) -> list[Row]:
    """Row per arm and seed; seeds shift all losses alike, and `4-loop` by an amount of its own."""
    made = []
    for seed in range(seeds):
        for arm, loss in LOSSES.items():
            own = 0.01 * seed if arm == "4-loop" else 0.0
            made.append(row(arm, seed, loss + 0.1 * seed + own))
    return made


def results(seeds: int = 1) -> dict[str, Any]:
    """The content of a `results.json`."""
    made = rows(seeds)
    return finite(
        {
            "format": 2,
            "command": "versatileffn reproduce --scale tiny",
            "created": "2026-01-01T00:00:00+00:00",
            "versions": {"torch": "2"},
            "device": {"name": "CPU <model & co>", "threads": 2, "cores": 2},
            "seeds": list(range(seeds)),
            "protocol": protocol("tiny").to_dict(),
            "data": {
                "source": "a corpus",
                "vocab_size": 2048,
                "tokenizer_sha256": "0",
                "train_tokens": 3_000_000,
                "val_tokens": 100_000,
                "val_documents": 3,
            },
            "seconds": 100.0,
            "stages": {},
            "summary": summarize(made),
            "rows": made,
        }
    )
