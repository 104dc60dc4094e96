"""Every token runs every loop; unwanted results get weight zero. Static shapes, plain torch.

With q_j = Σ_{ℓ≥j} p_ℓ, U_ℓ = Σ_{j≤ℓ} γ_j post(W_out a_j) gives

    (Y − H)/r = λ·[σ U₁ + s·post(W_out(m ⊙ a₁))] + (1 − λ)·Σ_j q_j γ_j post(W_out a_j)

Without a post-norm both pathways share the last down-projection, which then carries
[(1 − λ)·q_1 γ_1 + λσ + λ·s·m] ⊙ a₁ + Σ_{j>1} (1 − λ)·q_j γ_j a_j, and no expert is sliced out.

Legend: M tokens, D d_model, F d_hidden, L max_loops.
"""

from torch import Tensor

from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView


def run_masked(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """Carry out a plan, differentiably in everything. Source: Eq. 3, 7-11.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        view: the FFN; its modules are called.
        weights: of the same M tokens, hard or soft.

    Returns:
        (Y − H)/r, [M, D].
    """
    if weights.uniform is not None:
        return _uniform(hidden_MD, view, weights)
    return (_merged if view.merges else _apart)(hidden_MD, view, weights)


def _uniform(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """The same loops for every token and no width pathway: nothing to mask."""
    assert weights.uniform is not None
    total_MD = _gained(view.update(view.hidden(hidden_MD)), weights, 0)
    for loop in range(1, weights.uniform):
        a_MF = view.hidden(view.state(hidden_MD, total_MD), loop)
        total_MD = total_MD + _gained(view.update(a_MF, loop), weights, loop)
    return total_MD


def _merged(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """One last down-projection for both pathways."""
    depth_ML, bias_D = weights.depth_weights(), view.down_bias
    a_MF = view.hidden(hidden_MD)
    blend_MF = weights.first_loop(a_MF, depth_ML[:, :1])
    total_MD: Tensor | None = None
    for loop in range(1, weights.max_loops):
        step_MD = _gained(view.down(a_MF), weights, loop - 1)
        total_MD = step_MD if total_MD is None else total_MD + step_MD
        a_MF = view.hidden(view.state(hidden_MD, total_MD))
        blend_MF = blend_MF + depth_ML[:, loop, None].to(a_MF.dtype) * a_MF
    output_MD: Tensor = view.down(blend_MF)
    if bias_D is None:
        return output_MD
    # W_out's bias was added once; the plan wants it once per loop and once for the width pathway.
    times_M1, width_M1 = depth_ML.sum(-1, keepdim=True), weights.width_bias()
    times_M1 = times_M1 if width_M1 is None else times_M1 + width_M1
    return output_MD + (times_M1.to(bias_D.dtype) - 1) * bias_D


def _apart(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """A down-projection and a post-norm for each loop, and one for the width pathway."""
    depth_ML = weights.depth_weights()
    a_MF = view.hidden(hidden_MD)
    step_MD = view.update(a_MF)
    first_M1 = depth_ML[:, :1] if weights.shared_M1 is None else depth_ML[:, :1] + weights.shared_M1
    output_MD = first_M1.to(step_MD.dtype) * step_MD
    width_MD = width_update(view, weights, a_MF)
    output_MD = output_MD if width_MD is None else output_MD + width_MD
    total_MD = _gained(step_MD, weights, 0)
    for loop in range(1, weights.max_loops):
        step_MD = view.update(view.hidden(view.state(hidden_MD, total_MD), loop), loop)
        output_MD = output_MD + depth_ML[:, loop, None].to(step_MD.dtype) * step_MD
        total_MD = total_MD + _gained(step_MD, weights, loop)
    return output_MD


def width_update(view: FFNView, weights: TokenWeights, a_MF: Tensor) -> Tensor | None:
    """What the experts add where nothing merges, λs·post(W_out(m ⊙ a₁)), [M, D]; None without them.

    Without a post-norm W_out's bias is in the width pathway once, as everywhere else: not times s,
    and not again where the full FFN joins.
    """
    gated_MF, bias_D, bias_M1 = weights.gated(a_MF), view.down_bias, weights.width_bias()
    if gated_MF is None or weights.routed_M1 is None or bias_M1 is None:
        return None
    update_MD = view.update(gated_MF)
    width_MD = weights.routed_M1.to(update_MD.dtype) * update_MD
    if bias_D is None or view.post_norm is not None:
        return width_MD
    times_M1 = bias_M1 - weights.routed_M1
    times_M1 = times_M1 if weights.shared_M1 is None else times_M1 - weights.shared_M1
    return width_MD + times_M1.to(bias_D.dtype) * bias_D


def _gained(step_MD: Tensor, weights: TokenWeights, loop: int) -> Tensor:
    """γ_ℓ times an update."""
    gains_L = weights.gains_L
    return step_MD if gains_L is None else gains_L[loop].to(step_MD.dtype) * step_MD
