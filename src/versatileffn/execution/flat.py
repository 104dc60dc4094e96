"""What every executor is given: a row for each token, whatever shape the hidden states have."""

from torch import Tensor

from versatileffn.errors import PlanError
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView


def flatten_tokens(
    hidden: Tensor, view: FFNView, plan: ReusePlan
) -> tuple[Tensor, FFNView, TokenWeights]:
    """Lay out hidden states, a view and a plan for an executor.

    Args:
        hidden: hidden states of any leading shape, [..., D].
        view: of the FFN.
        plan: for tokens of that leading shape.

    Returns:
        Hidden states [M, D]; the view, without what sets later loops apart if there are none; and
        the plan's weights for each of the M tokens.

    Raises:
        PlanError: plan and hidden states differ in their leading shape.
    """
    if plan.loop_count.shape != hidden.shape[:-1]:
        raise PlanError(
            f"plan for tokens of shape {tuple(plan.loop_count.shape)} given hidden states of shape "
            f"{tuple(hidden.shape)}: the leading dimensions must agree"
        )
    weights = plan.flatten().weights()
    if weights.max_loops == 1:
        view = view._replace(loop_weights=None)
    return hidden.reshape(-1, hidden.shape[-1]), view, weights
