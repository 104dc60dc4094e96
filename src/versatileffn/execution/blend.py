"""The blend of hidden activations that both executors multiply by W_out once.

Legend: M tokens, F d_hidden, N num_experts.
"""

from torch import Tensor

from versatileffn.ffn.experts import spread_gates
from versatileffn.ffn.plan import ReusePlan


def width_activations(plan: ReusePlan, first_MF: Tensor) -> Tensor:
    """(σ + s·m) ⊙ a₁, the width pathway's hidden activations, [M, F].

    Source: Eq. 6–8. The virtual experts see the input of loop 1, so their hidden activations are
    slices of a₁ and the whole pathway is this one elementwise product.

    Args:
        plan: a flat plan with a width pathway.
        first_MF: a₁, hidden activations of loop 1.
    """
    assert plan.gates is not None
    assert plan.experts is not None
    assert plan.slices is not None
    gates_MN = spread_gates(plan.gates, plan.experts, plan.slices.num_experts)
    if plan.width_gain is not None:
        gates_MN = gates_MN * plan.width_gain
    if plan.slices.tiles:
        return plan.slices.scale_neurons((gates_MN + plan.shared).to(first_MF.dtype), first_MF)
    routed_MF = plan.slices.scale_neurons(gates_MN.to(first_MF.dtype), first_MF)
    return routed_MF + plan.shared * first_MF if plan.shared else routed_MF
