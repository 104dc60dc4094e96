"""Where a model spends its loops: by layer, by a token's position, by how common the token is.

Legend: B sequences, T tokens of each, R layers that decide, G groups, L max_loops, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from versatileffn.analysis.deciding import deciding_layers
from versatileffn.analysis.drawing import figure, inked, legend_below, loop_shares, svg
from versatileffn.analysis.outcome import Outcome, csv_bytes
from versatileffn.evaluation.loops import LayerTally
from versatileffn.evaluation.observe import observe


@dataclass(frozen=True)
class Group:
    """Some of the tokens, in all layers that decide or in one.

    Args:
        label: which: a layer, or a range of positions or of counts, all 1-based.
        decisions: how many loop counts were decided here: tokens, times layers.
        mean_loops: their mean.
        loop_share: share of 1, 2, … L; sums to 1.
    """

    label: str
    decisions: int
    mean_loops: float
    loop_share: tuple[float, ...]


@dataclass(frozen=True)
class LoopProfile:
    """Loops of all tokens of some text.

    Source: Figure 4 (mean predicted loops per layer).

    Args:
        layers: a group for each layer that decides; its label is the layer's number.
        positions: by the token's place in its sequence, doubling.
        frequencies: by how often the token occurs in the text that was read, doubling.
        mean_lam: mean λ of each of the layers.
        tokens: how many there were.
    """

    layers: tuple[Group, ...]
    positions: tuple[Group, ...]
    frequencies: tuple[Group, ...]
    mean_lam: tuple[float, ...]
    tokens: int


def loop_profile(model: Any, batches: Iterable[Tensor]) -> LoopProfile:
    """Read some text, and sum up how often each token loops.

    Args:
        model: a causal language model of any family.
        batches: token ids without padding, each [B, T].

    Raises:
        ConfigError: there are no tokens, or the model decides no loops.
        CheckpointError: the model computes no finite numbers.
    """
    tallies: dict[int, LayerTally] = {}
    places_TL = torch.zeros(0, 0, dtype=torch.int64)
    words_VL = places_TL
    ids_seen = torch.zeros(0, dtype=torch.int64)
    for seen in observe(model, batches):
        plans = deciding_layers(model, seen.decisions)
        ids_BT = seen.ids_BT.cpu()
        positions_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
        ids_seen = _add(ids_seen, ids_BT.flatten().bincount())
        for layer, plan in plans.items():
            tallies.setdefault(layer, LayerTally()).add(plan)
            loops_BT = plan.loop_count.cpu()
            places_TL = _add(places_TL, _cross(positions_BT, loops_BT, plan.max_loops))
            words_VL = _add(words_VL, _cross(ids_BT, loops_BT, plan.max_loops))
    uses = {layer: tally.use() for layer, tally in tallies.items()}
    tokens = int(ids_seen.sum())
    return LoopProfile(
        layers=tuple(
            Group(str(layer + 1), tokens, use.mean_loops or 0.0, tuple(use.loop_share or ()))
            for layer, use in uses.items()
        ),
        positions=_doubling(places_TL, torch.arange(1, len(places_TL) + 1)),
        frequencies=_doubling(words_VL, ids_seen),
        mean_lam=tuple(use.mean_lam or 0.0 for use in uses.values()),
        tokens=tokens,
    )


def loops_outcome(profile: LoopProfile) -> Outcome:
    """Picture, table and record of a profile."""
    kinds = {
        "layer": profile.layers,
        "position": profile.positions,
        "frequency": profile.frequencies,
    }
    loops = range(1, len(profile.layers[0].loop_share) + 1)
    heading = ["kind", "group", "decisions", "mean_loops", *(f"share_{n}" for n in loops)]
    rows = [
        [kind, group.label, group.decisions, group.mean_loops, *group.loop_share]
        for kind, groups in kinds.items()
        for group in groups
    ]
    table = {
        "layer": [group.label for group in profile.layers],
        "mean loops": [f"{group.mean_loops:.2f}" for group in profile.layers],
        "mean λ": [f"{lam:.3f}" for lam in profile.mean_lam],
    } | {
        f"{n} loop{'s' if n > 1 else ''}": [f"{g.loop_share[n - 1]:.1%}" for g in profile.layers]
        for n in loops
    }
    mean = sum(group.mean_loops for group in profile.layers) / len(profile.layers)
    return Outcome(
        title=f"Loops of {profile.tokens:,} tokens; {mean:.3f} in the mean",
        table=table,
        record={"mean_loops": mean, **asdict(profile)},
        files={"loops.svg": draw_profile(profile), "loops.csv": csv_bytes(heading, rows)},
    )


def draw_profile(profile: LoopProfile) -> bytes:
    """Three rows of stacked bars, as SVG."""
    panels = (
        (profile.layers, "layer"),
        (profile.positions, "position in the sequence"),
        (profile.frequencies, "how often the token occurs in this text"),
    )
    with inked():
        drawn = figure(6.9)
        for axes, (groups, label) in zip(drawn.subplots(3, 1), panels, strict=True):
            shares = [group.loop_share for group in groups]
            loop_shares(axes, shares, [g.mean_loops for g in groups], [g.label for g in groups])
            axes.set_xlabel(label)
        drawn.axes[0].set_title("mean loops above each bar", fontsize=9, pad=14)
        drawn.supylabel("share of tokens", fontsize=9)
        legend_below(drawn, drawn.axes[0], columns=4)
        return svg(drawn)


def _cross(groups: Tensor, loops: Tensor, max_loops: int) -> Tensor:
    """How often each loop count occurs in each group, [G, L]."""
    cells = groups.flatten() * max_loops + loops.flatten() - 1
    size = (int(groups.max()) + 1) * max_loops
    return cells.bincount(minlength=size).view(-1, max_loops)


def _add(total: Tensor, more: Tensor) -> Tensor:
    """Their sum; the shorter one lacks groups, or has none yet."""
    rows = max(len(total), len(more))
    if not len(total):
        total = torch.zeros_like(more)
    return sum(
        F.pad(each, (*(0,) * (2 * each.dim() - 1), rows - len(each))) for each in (total, more)
    )  # type: ignore[return-value]


def _doubling(counts_GL: Tensor, keys_G: Tensor) -> tuple[Group, ...]:
    """Groups put together by their keys: 1, 2–3, 4–7, …; a key of 0 has no tokens."""
    found = []
    for low in (2**n for n in range(int(keys_G.max()).bit_length())):
        inside = (keys_G >= low) & (keys_G < 2 * low)
        counts_L = counts_GL[inside].sum(0)
        total = int(counts_L.sum())
        if not total:
            continue
        shares = (counts_L.double() / total).tolist()
        mean = sum(loops * share for loops, share in enumerate(shares, start=1))
        high = min(2 * low - 1, int(keys_G.max()))
        label = str(low) if low == high else f"{low}–{high}"
        found.append(Group(label, total, mean, tuple(shares)))
    return tuple(found)
