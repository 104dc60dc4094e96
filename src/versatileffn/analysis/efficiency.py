"""The efficiency table: what an architecture costs as Base, k-Loop, MoE and VersatileFFN.

Source: arXiv 2512.14531, Table 2, with activation memory and our own accounting beside it.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from versatileffn.analysis.activations import ffn_activation_bytes
from versatileffn.analysis.flops import Accounting, ModelCost, ffn_of, model_cost
from versatileffn.errors import ConfigError
from versatileffn.execution.select import Execution
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
from versatileffn.models.family import reuse_config

Form = TypeVar("Form", bound=FFNConfig)
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
    activation_bytes: float | None = None
    activation_bytes_bf16: float | None = None


def efficiency_table(
    config: Any,
    mean_loops: float | None = None,
    share_below_max: float | None = None,
    executed: float | None = None,
    memory: bool = True,
) -> list[EfficiencyRow]:
    """Parameters, FFN FLOPs and activation memory of every form of an architecture.

    Args:
        config: of a model of any family, dense or reused. What it says about experts and loops
            holds for all rows; the paper's values fill in.
        mean_loops: N_mean of the VersatileFFN rows, 1 to L.
        share_below_max: P of the VersatileFFN rows, 0 to 1.
        executed: FFN FLOPs per token that were counted for the model itself.
        memory: measure activation memory, on one layer of the real size.

    Raises:
        ConfigError: `mean_loops` or `share_below_max` is out of range.
        CheckpointError: the family is unknown.
    """
    own, rows = ffn_of(config), []
    for name, ffn, execution in forms(own, config.intermediate_size):
        form = reuse_config(config, ffn)
        cost = model_cost(form)
        paper, ours = (_flops(cost, mean_loops, share_below_max, a) for a in ("paper", "ours"))
        mine = ffn == own and execution == "auto"
        row = EfficiencyRow(name, mine, cost.parameters, paper, ours, None, cost.controller)
        if memory:
            kept = partial(ffn_activation_bytes, form, mean_loops=mean_loops, execution=execution)
            row = replace(row, activation_bytes=kept(), activation_bytes_bf16=kept(bf16=True))
        rows.append(replace(row, flops_executed=executed) if mine else row)
    return rows


def forms(own: FFNConfig, d_hidden: int) -> Iterator[tuple[str, FFNConfig, Execution]]:
    """Name, FFN and execution of each row of the table.

    Args:
        own: the model's FFN.
        d_hidden: F; forms whose experts don't fit into it are left out.
    """
    yield "Base", Dense(), "auto"
    for count in sorted({*LOOPS, own.num_loops if isinstance(own, KLoop) else LOOPS[0]}):
        yield f"{count}-Loop", like(own, KLoop, num_loops=count), "auto"
    reuse = like(own, Versatile)
    choices: list[tuple[str, FFNConfig, Execution]] = [
        ("MoE", like(own, MoE), "auto"),
        ("VersatileFFN", reuse, "auto"),
    ]
    if reuse.loop_mix == "hard":  # else every loop is kept
        choices.append(("VersatileFFN, states only", reuse, "recompute"))
    for choice in choices:
        try:
            choice[1].expert_size(d_hidden)
        except ConfigError:
            continue
        yield choice


def like(own: FFNConfig, variant: type[Form], **changes: Any) -> Form:
    """Another variant, with those knobs of `own` that it has, too."""
    known = {field.name for field in dataclasses.fields(variant)}
    shared = {name: value for name, value in dataclasses.asdict(own).items() if name in known}
    return variant(**(shared | changes))


def _flops(
    cost: ModelCost, mean_loops: float | None, share: float | None, accounting: Accounting
) -> float | None:
    """FLOPs by one accounting; None where a measurement is missing."""
    if cost.needs_loops and mean_loops is None:
        return None
    if cost.needs_share(accounting) and share is None:
        return None
    return cost.ffn_flops(mean_loops, share, accounting)
