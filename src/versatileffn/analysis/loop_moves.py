"""How far each loop moves the output, in layers whose FFN is reused in depth alone.

A k-loop has no two pathways to compare, but k states H_1 … H_k: the layer's own plan with 1, 2, …
loops gives each.

Legend: B sequences, T tokens of each, R layers, L loops.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from versatileffn.analysis.drawing import cosine_maps
from versatileffn.analysis.layer_outputs import measure_layers
from versatileffn.analysis.outcome import Outcome, csv_bytes
from versatileffn.execution.select import Execution, execute
from versatileffn.ffn.config import KLoop
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.view import FFNView

MEASURES = ("cosine", "cosine_moves", "size")


@dataclass(frozen=True)
class LoopMove:
    """One loop of one layer, in the mean over tokens.

    Args:
        layer, loop: 1-based.
        cosine: of H_ℓ and H_{ℓ−1}, which both carry H.
        cosine_moves: of H_ℓ − H_{ℓ−1} and the loop before's; 1 for the first loop.
        size: ‖H_ℓ − H_{ℓ−1}‖ / ‖H‖.
    """

    layer: int
    loop: int
    cosine: float
    cosine_moves: float
    size: float


def depth_alone(ffn: Any) -> bool:
    """Whether an FFN's config reuses it in depth and has no width pathway."""
    return isinstance(ffn, KLoop) or getattr(ffn, "fusion", None) == "depth"


def measure_loops(
    model: Any, batches: Iterable[Tensor]
) -> tuple[list[LoopMove], dict[int, np.ndarray], list[int]]:
    """Read some text and measure what each loop does at each token, whatever it decides to run.

    Args:
        model: a causal language model of any family.
        batches: token ids without padding, each [B, T].

    Returns:
        the means, layer by layer and loop by loop; of each layer, 0-based, `MEASURES` of each loop
        for the first row of the longest batch, [L, 3, T]; and that row's token ids.

    Raises:
        ConfigError: there are no tokens, or no layer loops.
        CheckpointError: the model computes no finite numbers.
    """
    name = model.name_or_path or "the model"
    found = measure_layers(
        model, batches, _measures,
        lambda _: f"{name} runs each FFN once, so there are no loops to compare: give a model with "
        "two loops or more, see `versatileffn upcycle`",
    )  # fmt: skip
    means = [
        LoopMove(layer + 1, loop, *values)
        for layer, each in found.means.items()
        for loop, values in enumerate(each.reshape(-1, len(MEASURES)).tolist(), start=1)
    ]
    shown = {
        layer: each.reshape(-1, len(MEASURES), each.shape[-1])
        for layer, each in found.shown.items()
    }
    return means, shown, found.longest


def _measures(
    hidden: Tensor, view: FFNView, plan: ReusePlan | Routing, execution: Execution
) -> Tensor | None:
    """`MEASURES` of each loop and token, float64 [3·L, B, T]; None where there is one loop."""
    if not isinstance(plan, ReusePlan) or plan.max_loops == 1:
        return None
    stream = hidden.double()
    before, last, size = stream, None, stream.norm(dim=-1).clamp_min(1e-30)
    measures = []
    for loops in range(1, plan.max_loops + 1):
        edited = replace(plan, fusion=None, lam=torch.zeros_like(plan.lam), uniform=None)
        edited = edited.with_loops(torch.full_like(plan.loop_count, loops))
        state = stream + view.scale * execute(hidden, view, edited, execution).double()
        move = state - before
        last = move if last is None else last
        measures += [
            cosine_similarity(state, before, dim=-1),
            cosine_similarity(move, last, dim=-1),
            move.norm(dim=-1) / size,
        ]
        before, last = state, move
    return torch.stack(measures)


def loop_moves_outcome(
    means: Sequence[LoopMove], shown: dict[int, np.ndarray], texts: Sequence[str]
) -> Outcome:
    """Heat maps of one sequence's last loop, all numbers token by token, and the means.

    Args:
        means, shown: see `measure_loops`.
        texts: the shown sequence's tokens.
    """
    rows = [
        [layer + 1, loop, place + 1, text, *values_3T[:, place].tolist()]
        for layer, values_L3T in shown.items()
        for loop, values_3T in enumerate(values_L3T, start=1)
        for place, text in enumerate(texts)
    ]
    panels = {
        title: np.stack([values_L3T[-1, index] for values_L3T in shown.values()])
        for index, title in enumerate(("after the last loop and before it", "the last two moves"))
    }
    return Outcome(
        title="The loops, in the mean over tokens",
        table={
            "layer": [str(row.layer) for row in means],
            "loop": [str(row.loop) for row in means],
            "cosine": [f"{row.cosine:+.3f}" for row in means],
            "of moves": ["–" if row.loop == 1 else f"{row.cosine_moves:+.3f}" for row in means],
            "size": [f"{row.size:.3f}" for row in means],
        },
        record={"loops": [asdict(row) for row in means]},
        files={
            "similarity.svg": cosine_maps(panels, [str(layer + 1) for layer in shown]),
            "similarity.csv": csv_bytes(["layer", "loop", "position", "token", *MEASURES], rows),
        },
        notes=[
            "This model reuses its FFN in depth alone, so loops are compared, not two pathways.",
            "cosine: of H_ℓ and H_ℓ₋₁; of moves: of H_ℓ − H_ℓ₋₁ and the loop before's; size: "
            "‖H_ℓ − H_ℓ₋₁‖/‖H‖.",
        ],
    )
