"""Each token runs its own ℓ̂ loops and stops: Σ ℓ̂ FFN applications, no more. For inference.

Tokens are ordered by loop count once, so the tokens still running are always a prefix. With
U_ℓ = H_ℓ − H₀, a token's last down-projection carries the blend of its last loop and of the
virtual experts, and the shared part of the width pathway is σ·U₁, which loop 1 already computed:

    Y = H₀ + λσU₁ + (1 − λ) U_{ℓ̂−1} + W_out[ (1 − λ) γ_ℓ̂ a_ℓ̂ + λ s·m ⊙ a₁ ]        for ℓ̂ > 1

Legend: M tokens, D d_model, F d_hidden, L max_loops, R tokens still running.
"""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from versatileffn.execution.blend import blend_first_loop
from versatileffn.ffn.dense import FeedForward, Norm, hidden_activations
from versatileffn.ffn.plan import ReusePlan


def run_packed(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
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
    kept_M1 = 1 - plan.lam[:, None]

    finished: list[Tensor] = []
    total_RD = torch.zeros_like(start_MD)
    width_RD, width_RF = total_RD, None
    active = active_tokens(plan)
    for loop, (running, staying) in enumerate(pairwise(active)):
        stay, leave = slice(staying), slice(staying, running)
        a_RF = hidden_activations(mlp, norm(start_MD[:running] + total_RD))
        gain = kept_M1.new_ones(()) if plan.loop_gains is None else plan.loop_gains[loop]
        weight_R1 = kept_M1[leave] * gain
        if loop == 0:
            width_RF = routed_activations(plan.take(stay), a_RF[stay])
            a_RF[leave] = blend_first_loop(plan.take(leave), a_RF[leave], weight_R1)
        else:
            a_RF[leave] *= weight_R1.to(a_RF.dtype)
            if width_RF is not None:
                a_RF[leave] += width_RF[leave]
        if plan.loop_gains is not None:
            a_RF[stay] *= gain.to(a_RF.dtype)

        kept = kept_M1[leave].to(total_RD.dtype)
        total_RD[leave] = torch.lerp(width_RD[leave], total_RD[leave], kept)
        update_RD = mlp.down_proj(a_RF)
        if mlp.down_proj.bias is not None:
            # W_out's bias was added once; the plan wants γ of it, and once for the width pathway,
            # whose shared part has it from loop 1.
            missing = 1.0 if loop == 0 else 1.0 - plan.shared
            times_R1 = torch.cat(
                [gain.expand(staying, 1), weight_R1 + missing * plan.lam[leave, None]]
            )
            update_RD = update_RD + (times_R1 - 1).to(update_RD.dtype) * mlp.down_proj.bias
        total_RD = total_RD + update_RD
        finished.append(start_MD[leave] + total_RD[leave])
        total_RD = total_RD[stay]
        if loop == 0:
            width_RD = plan.shared * total_RD

    output_MD = torch.empty_like(hidden_MD)
    output_MD[order_M] = torch.cat(finished[::-1]).to(hidden_MD.dtype)
    return output_MD


def routed_activations(plan: ReusePlan, first_MF: Tensor) -> Tensor | None:
    """λ·s·m ⊙ a₁, kept for the tokens whose last loop comes later, [M, F]."""
    if plan.gates is None:
        return None
    routed = replace(plan, shared=0.0)
    return blend_first_loop(routed, first_MF, torch.zeros_like(plan.lam[:, None]))


def active_tokens(plan: ReusePlan) -> list[int]:
    """How many tokens run loop 1, 2, … up to the longest, then 0; their sum is Σ ℓ̂."""
    exits = torch.bincount(plan.loop_count - 1, minlength=1)
    return [*exits.flip(0).cumsum(0).flip(0).tolist(), 0]
