"""Every token runs every loop; unwanted results get weight zero. Static shapes, plain torch.

With q_j = Σ_{ℓ≥j} p_ℓ, H_ℓ = H₀ + W_out Σ_{j≤ℓ} γ_j a_j gives

    Y = λ·Y_width + (1 − λ)·Σ_ℓ p_ℓ H_ℓ
      = H₀ + W_out[ (1 − λ)·Σ_j q_j γ_j a_j + λ·(σ + s·m) ⊙ a₁ ]

so both pathways share the last down-projection and no expert is sliced out or looped over.

Legend: M tokens, D d_model, F d_hidden, L max_loops.
"""

from torch import Tensor

from versatileffn.execution.blend import Blend
from versatileffn.ffn.dense import FeedForward, Norm, hidden_activations, output_bias
from versatileffn.ffn.plan import ReusePlan


def run_masked(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
    """Carry out a plan, differentiably in everything. Source: Eq. 3, 7–11.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        norm: the norm before the FFN.
        mlp: the FFN; its linears are called.
        plan: a flat plan for the same M tokens, hard or soft.

    Returns:
        Y, [M, D].
    """
    depth_ML = depth_weights(plan)
    a_MF = hidden_activations(mlp, norm(hidden_MD))
    blend_MF = Blend.of(plan).first_loop(a_MF, depth_ML[:, :1])
    state_MD = hidden_MD
    for loop in range(1, plan.max_loops):
        update_MD = mlp.down_proj(a_MF)
        if plan.loop_gains is not None:
            update_MD = plan.loop_gains[loop - 1].to(update_MD.dtype) * update_MD
        state_MD = state_MD + update_MD
        a_MF = hidden_activations(mlp, norm(state_MD))
        blend_MF = blend_MF + depth_ML[:, loop, None].to(a_MF.dtype) * a_MF
    output_MD = hidden_MD + mlp.down_proj(blend_MF)
    bias_D = output_bias(mlp)
    if bias_D is None:
        return output_MD
    # W_out's bias was added once; the plan wants it once per loop and once for the width pathway.
    times_M = depth_ML.sum(-1) + plan.lam
    return output_MD + (times_M[:, None].to(bias_D.dtype) - 1) * bias_D


def depth_weights(plan: ReusePlan) -> Tensor:
    """(1 − λ)·q_j·γ_j, the weight of each loop's activations in the output, [M, L]."""
    remaining_ML = plan.loop_probs.flip(-1).cumsum(-1).flip(-1)
    weights_ML = (1 - plan.lam)[:, None] * remaining_ML
    return weights_ML if plan.loop_gains is None else weights_ML * plan.loop_gains
