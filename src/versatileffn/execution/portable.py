"""Stands in for `select.py` in the portable file: plans are carried out by the masked executor."""

from typing import Any, Literal

from torch import Tensor

from versatileffn.execution.flat import flatten_tokens
from versatileffn.execution.masked import run_masked
from versatileffn.execution.once import run_once
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.view import FFNView

Execution = Literal["auto", "masked"]
"""Both are the same here; the others need the package."""


def execute(
    hidden: Tensor, view: FFNView, plan: ReusePlan, execution: Execution = "auto"
) -> Tensor:
    """Carry out a plan on hidden states of any leading shape, [..., D] -> [..., D].

    Returns:
        (Y − H)/r, what the family adds to the residual stream.

    Raises:
        PlanError: plan and hidden states differ in their leading shape.
    """
    hidden_MD, view, weights = flatten_tokens(hidden, view, plan)
    return run_masked(hidden_MD, view, weights).view_as(hidden)


def may_run_once(view: FFNView, execution: Execution) -> bool:
    """Never: what needs no plan is the package's affair."""
    return False


def execute_once(
    x: Tensor,
    view: FFNView,
    controller: Any,
    read: Tensor,
    learned: bool = False,
    width_gain: Tensor | None = None,
    execution: Execution = "auto",
) -> Tensor:
    """As the package's own, for whoever asks without asking `may_run_once`."""
    return run_once(x, view, controller.one_loop(read, learned, width_gain))
