"""How like each other the two pathways are, and how far each moves the output.

Both come from the layer's own executor and plan, edited: with λ = 1 the output is Y_width, with λ =
0 it is Y_depth.

Legend: B sequences, T tokens of each, R layers, D d_model.
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
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.view import FFNView

MEASURES = ("cosine", "cosine_updates", "width_size", "depth_size", "width_share")


@dataclass(frozen=True)
class Pathways:
    """One layer's pathways, in the mean over tokens.

    Source: Figure 6 (cosine of Y_width and Y_depth per token).

    Args:
        layer: 1-based.
        cosine: of Y_width and Y_depth, which both carry H (Eq. 8, 9).
        cosine_updates: of Y_width − H and Y_depth − H, which don't.
        width_size: ‖Y_width − H‖ / ‖H‖.
        depth_size: ‖Y_depth − H‖ / ‖H‖.
        width_share: λ‖Y_width − H‖ of that plus (1 − λ)‖Y_depth − H‖: the width pathway's part in
            what moves the output. A token that moves nowhere counts as 0.
    """

    layer: int
    cosine: float
    cosine_updates: float
    width_size: float
    depth_size: float
    width_share: float


def pathway_updates(
    hidden: Tensor, view: FFNView, plan: ReusePlan, execution: Execution
) -> tuple[Tensor, Tensor]:
    """(Y_width − H)/r and (Y_depth − H)/r, each [..., D].

    Args:
        hidden: H, [..., D].
        view: the dense FFN.
        plan: what was decided, with a width pathway.
        execution: how to carry it out.
    """
    free: dict[str, Any] = {"fusion": None, "uniform": None}
    once = plan.with_loops(torch.ones_like(plan.loop_count))  # the width pathway has one
    width = replace(once, lam=torch.ones_like(plan.lam), **free)
    depth = replace(plan, lam=torch.zeros_like(plan.lam), **free)
    return execute(hidden, view, width, execution), execute(hidden, view, depth, execution)


def measure_pathways(
    model: Any, batches: Iterable[Tensor]
) -> tuple[list[Pathways], dict[str, np.ndarray], list[int]]:
    """Read some text and compare the pathways at each token.

    Args:
        model: a causal language model of any family.
        batches: token ids without padding, each [B, T].

    Returns:
        the means of each layer that has both pathways; each measure [R, T] for the first row of
        the longest batch; and that row's token ids.

    Raises:
        ConfigError: there are no tokens, or no layer has both pathways.
        CheckpointError: the model computes no finite numbers.
    """
    found = measure_layers(model, batches, _measures, lambda made: _why_none(model, made))
    means = [Pathways(layer + 1, *each.tolist()) for layer, each in found.means.items()]
    by_layer = np.stack(list(found.shown.values()), axis=1)
    return means, dict(zip(MEASURES, by_layer, strict=True)), found.longest


def _measures(
    hidden: Tensor, view: FFNView, plan: ReusePlan | Routing, execution: Execution
) -> Tensor | None:
    """`MEASURES` of each token, float64 [5, B, T]; None without virtual experts."""
    if not isinstance(plan, ReusePlan) or plan.gates is None:
        return None
    updates = pathway_updates(hidden, view, plan, execution)
    width, depth = (view.scale * update.double() for update in updates)
    stream, lam = hidden.double(), plan.lam.double()
    size, width_size, depth_size = (each.norm(dim=-1) for each in (stream, width, depth))
    by_width, by_depth = lam * width_size, (1 - lam) * depth_size
    return torch.stack([
        cosine_similarity(stream + width, stream + depth, dim=-1),
        cosine_similarity(width, depth, dim=-1),
        width_size / size.clamp_min(1e-30),
        depth_size / size.clamp_min(1e-30),
        by_width / (by_width + by_depth).clamp_min(1e-30),
    ])  # fmt: skip


def _why_none(model: Any, decisions: Sequence[ReusePlan | Routing]) -> str:
    name = model.name_or_path or "the model"
    real = any(isinstance(decision, Routing) for decision in decisions)
    reason = "its experts are real" if real else "no layer routes to slices of its FFN"
    return (
        f"{name} has no two pathways to compare ({reason}): give a versatile model with a width "
        "pathway, see `versatileffn upcycle`"
    )


def similarity_outcome(
    means: Sequence[Pathways], shown: dict[str, np.ndarray], texts: Sequence[str]
) -> Outcome:
    """Heat maps of one sequence, its numbers token by token, and the means.

    Args:
        means, shown: see `measure_pathways`.
        texts: the shown sequence's tokens.
    """
    layers = [str(row.layer) for row in means]
    rows = [
        [layer, place + 1, text, *(float(shown[name][index, place]) for name in MEASURES)]
        for index, layer in enumerate(layers)
        for place, text in enumerate(texts)
    ]
    table = {
        "cosine": [f"{row.cosine:+.3f}" for row in means],
        "of updates": [f"{row.cosine_updates:+.3f}" for row in means],
        "width moves": [f"{row.width_size:.3f}" for row in means],
        "depth moves": [f"{row.depth_size:.3f}" for row in means],
        "width's part": [f"{row.width_share:.1%}" for row in means],
    }
    return Outcome(
        title="The two pathways, in the mean over tokens",
        table={"layer": layers, **table},
        record={"layers": [asdict(row) for row in means]},
        files={
            "similarity.svg": draw_similarity(shown, layers),
            "similarity.csv": csv_bytes(["layer", "position", "token", *MEASURES], rows),
        },
        notes=[
            "cosine: of Y_width and Y_depth; of updates: of both less H. "
            "width and depth move: ‖Y − H‖/‖H‖ of each pathway alone; width's part: of λ‖Y_width − "
            "H‖ + (1 − λ)‖Y_depth − H‖."
        ],
    )


def draw_similarity(shown: dict[str, np.ndarray], layers: Sequence[str]) -> bytes:
    """Cosine along one sequence, layer by layer: of the outputs, and of the updates; as SVG."""
    panels = {"cosine": "Y_width and Y_depth", "cosine_updates": "without H"}
    return cosine_maps({title: shown[name] for name, title in panels.items()}, layers)
