"""The efficiency table: what an architecture costs as Base, k-Loop, MoE and VersatileFFN.

Source: arXiv 2512.14531, Table 2, with activation memory and our own accounting beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import LlamaConfig

from versatileffn.analysis.activations import ffn_activation_bytes
from versatileffn.analysis.flops import (
    controller_flops_per_token,
    ffn_flops_per_token,
    ffn_of,
    parameter_count,
)
from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig
from versatileffn.models.llama import VersatileLlamaConfig

LOOPS = (2, 4, 6)
"""Source: the k-Loop baselines of Table 2."""


@dataclass(frozen=True)
class EfficiencyRow:
    """One form of the architecture.

    Args:
        name: what it is.
        own: whether the model that was asked about has this form.
        parameters: of the whole model.
        flops_paper: FFN FLOPs per token, the paper's accounting; None where it needs a
            measurement that wasn't given.
        flops_ours: FFN FLOPs per token that have to be multiplied. None likewise.
        flops_executed: FFN FLOPs per token counted in a real forward pass; None if none was run.
        flops_controller: FLOPs per token of routers and loop predictors, in no other count.
        activation_bytes: kept by the FFNs for the backward pass, bytes per token, in float32, at
            `mean_loops` (L when that isn't given); None if it wasn't measured.
        activation_bytes_bf16: the same under bfloat16 autocast.
    """

    name: str
    own: bool
    parameters: int
    flops_paper: float | None
    flops_ours: float | None
    flops_executed: float | None
    flops_controller: int
    activation_bytes: float | None
    activation_bytes_bf16: float | None


def efficiency_table(
    config: LlamaConfig,
    mean_loops: float | None = None,
    share_below_max: float | None = None,
    executed: float | None = None,
    memory: bool = True,
) -> list[EfficiencyRow]:
    """Parameters, FFN FLOPs and activation memory of every form of an architecture.

    Args:
        config: a `VersatileLlamaConfig` of any variant, or a plain LlamaConfig (dense). What it
            says about experts and loops holds for all rows; the paper's values fill in.
        mean_loops: N_mean of the VersatileFFN rows, 1 to L.
        share_below_max: P of the VersatileFFN rows, 0 to 1.
        executed: FFN FLOPs per token that were counted for the model itself.
        memory: measure activation memory, on one layer of the real size.

    Raises:
        ConfigError: `mean_loops` or `share_below_max` is out of range.
    """
    rows = []
    for name, own, ffn in forms(ffn_of(config), config.intermediate_size):
        form = VersatileLlamaConfig.from_ffn(config, ffn)
        paper, ours = _flops(form, ffn, mean_loops, share_below_max)
        rows.append(
            EfficiencyRow(
                name,
                own,
                parameter_count(form),
                paper,
                ours,
                executed if own else None,
                controller_flops_per_token(form),
                ffn_activation_bytes(form, False, mean_loops) if memory else None,
                ffn_activation_bytes(form, True, mean_loops) if memory else None,
            )
        )
    return rows


def forms(own: FFNConfig, d_hidden: int) -> Iterator[tuple[str, bool, FFNConfig]]:
    """Name, whether it is the model's own, and FFN of each row of the table.

    Args:
        own: the model's FFN.
        d_hidden: F; forms whose experts don't fit into it are left out.
    """
    yield "Base", own.variant == "dense", own.replace(variant="dense", execution="auto")
    loops = own.num_loops if own.variant == "k-loop" else LOOPS[0]
    for count in sorted({*LOOPS, loops}):
        mine = own.variant == "k-loop" and own.num_loops == count
        yield f"{count}-Loop", mine, own.replace(variant="k-loop", num_loops=count)
    reuse = own.replace(variant="versatile")
    states_only = own.execution == "recompute"
    mine = own.variant == "versatile"
    choices = [
        ("MoE", own.variant == "moe", own.replace(variant="moe")),
        (
            "VersatileFFN",
            mine and not states_only,
            reuse.replace(execution="auto") if states_only else reuse,
        ),
    ]
    if own.loop_mix == "hard" and own.execution != "masked":  # else every loop is kept
        states = reuse.replace(execution="recompute")
        choices.append(("VersatileFFN, states only", mine and states_only, states))
    for choice in choices:
        try:
            choice[2].expert_size(d_hidden)
        except ConfigError:
            continue
        yield choice


def _flops(
    form: LlamaConfig, ffn: FFNConfig, mean_loops: float | None, share: float | None
) -> tuple[float | None, float | None]:
    """The paper's accounting and ours; None where a measurement is missing."""
    needs_loops = ffn.uses_depth and ffn.loop_mix == "hard"
    needs_share = needs_loops and ffn.uses_width and ffn.fusion == "difficulty"
    if needs_loops and mean_loops is None:
        return None, None
    ours = ffn_flops_per_token(form, mean_loops, share)
    if needs_share and share is None:
        return None, ours
    return ffn_flops_per_token(form, mean_loops, share, accounting="paper"), ours
