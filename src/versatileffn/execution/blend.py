"""The blend of hidden activations with which one down-projection serves both pathways.

Legend: M tokens, F d_hidden, N num_experts.
"""

from torch import Tensor

from versatileffn.ffn.experts import spread_gates
from versatileffn.ffn.plan import ReusePlan


def blend_first_loop(plan: ReusePlan, first_MF: Tensor, depth_M1: Tensor) -> Tensor:
    """[depth + λ·(σ + s·m)] ⊙ a₁, what loop 1 contributes to the output, [M, F].

    Source: Eq. 6–8. The virtual experts see the input of loop 1, so their hidden activations are
    slices of a₁, and the whole width pathway is a weight on them. Weights are added up before
    they meet the activations: where they sum to one, a₁ passes through unchanged.

    Args:
        plan: a flat plan.
        first_MF: a₁, hidden activations of loop 1.
        depth_M1: the depth pathway's weight of loop 1.
    """
    if plan.gates is None or plan.experts is None or plan.slices is None:
        return first_MF * depth_M1.to(first_MF.dtype)
    routed_MN = spread_gates(plan.gates, plan.experts, plan.slices.num_experts)
    if plan.width_gain is not None:
        routed_MN = routed_MN * plan.width_gain
    rest_M1 = depth_M1 + plan.lam[:, None] * plan.shared
    weights_MN = rest_M1 + plan.lam[:, None] * routed_MN
    return plan.slices.scale_neurons(
        weights_MN.to(first_MF.dtype), rest_M1.to(first_MF.dtype), first_MF
    )
