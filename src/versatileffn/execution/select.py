"""Which executor carries out a plan."""

from typing import Literal

from torch import Tensor

from versatileffn.errors import PlanError
from versatileffn.execution.masked import run_masked
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.view import FFNView

Execution = Literal["auto", "masked", "packed", "recompute", "triton"]


def execute(
    hidden: Tensor, view: FFNView, plan: ReusePlan, execution: Execution = "auto"
) -> Tensor:
    """Carry out a plan on hidden states of any leading shape, [..., D] -> [..., D].

    Returns:
        (Y − H)/r, what the family adds to the residual stream.

    Raises:
        PlanError: plan and hidden states differ in their leading shape.
    """
    if plan.loop_count.shape != hidden.shape[:-1]:
        raise PlanError(
            f"plan for tokens of shape {tuple(plan.loop_count.shape)} given hidden states of shape "
            f"{tuple(hidden.shape)}: the leading dimensions must agree"
        )
    hidden_MD, weights = hidden.reshape(-1, hidden.shape[-1]), plan.flatten().weights()
    return run_masked(hidden_MD, view, weights).view_as(hidden)
