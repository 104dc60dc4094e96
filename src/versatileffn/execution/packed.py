"""Each token runs its own ℓ̂ loops and stops: Σ ℓ̂ FFN applications, no more. For inference.

Tokens are ordered by loop count once, so the tokens still running are always a prefix. A token's
last down-projection carries the blend of its last loop and the width pathway:

    Y = λ H₀ + (1 − λ) H_{ℓ̂−1} + W_out[ (1 − λ) γ_ℓ̂ a_ℓ̂ + λ (σ + s·m) ⊙ a₁ ]

Legend: M tokens, D d_model, F d_hidden, L max_loops, R tokens still running.
"""

import torch
from torch import Tensor, nn

from versatileffn.execution.blend import width_activations
from versatileffn.ffn.dense import hidden_activations
from versatileffn.ffn.plan import ReusePlan


def run_packed(hidden_MD: Tensor, norm: nn.Module, mlp: nn.Module, plan: ReusePlan) -> Tensor:
    """Carry out a hard plan without gradients. Source: Algorithm 2.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        norm: the norm before the FFN.
        mlp: the FFN; its linears are called.
        plan: a flat plan for the same M tokens.

    Returns:
        Y, [M, D].

    Raises:
        ValueError: the plan is soft, so no token may stop early.
    """
    if not plan.hard:
        raise ValueError("a soft plan mixes all loops: it needs the masked executor")
    order_M = plan.loop_count.argsort(descending=True, stable=True)
    plan = plan.take(order_M)
    start_MD = hidden_MD[order_M]
    lam_M1 = plan.lam[:, None].to(hidden_MD.dtype)

    leaving_rows: list[Tensor] = []
    state_RD, width_MF = start_MD, None
    active = active_tokens(plan)
    for loop, (running, staying) in enumerate(zip(active, active[1:], strict=False)):
        gain = 1.0 if plan.loop_gains is None else plan.loop_gains[loop]
        weight_R1 = torch.ones_like(lam_M1[:running])
        weight_R1[staying:] -= lam_M1[staying:running]
        weight_R1 = weight_R1 * gain

        a_RF = hidden_activations(mlp, norm(state_RD))
        blend_RF = a_RF * weight_R1.to(a_RF.dtype)
        if plan.gates is not None:
            if width_MF is None:
                width_MF = lam_M1.to(a_RF.dtype) * width_activations(plan, a_RF)
            blend_RF[staying:] += width_MF[staying:running]
        update_RD = mlp.down_proj(blend_RF)
        if mlp.down_proj.bias is not None:
            weight_R1[staying:] += lam_M1[staying:running]
            update_RD = update_RD + (weight_R1 - 1).to(update_RD.dtype) * mlp.down_proj.bias

        state_RD[staying:] += lam_M1[staying:running] * (
            start_MD[staying:running] - state_RD[staying:]
        )
        state_RD = state_RD + update_RD
        leaving_rows.append(state_RD[staying:])
        state_RD = state_RD[:staying]

    output_MD = torch.empty_like(hidden_MD)
    output_MD[order_M] = torch.cat(leaving_rows[::-1]).to(hidden_MD.dtype)
    return output_MD


def active_tokens(plan: ReusePlan) -> list[int]:
    """How many tokens run loop 1, 2, … up to the longest, then 0; their sum is Σ ℓ̂."""
    exits = torch.bincount(plan.loop_count - 1, minlength=1)
    return [*exits.flip(0).cumsum(0).flip(0).tolist(), 0]
