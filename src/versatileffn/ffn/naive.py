"""Algorithms 1 and 2 of the paper, one token at a time: the truth that every fast path is held to.

Deliberately slow and literal: expert weights are sliced, every pathway is computed on its own, and
autograd differentiates all of it. It imports nothing from this package, so that a mistake there
can't repeat itself here.

Legend: M tokens, D d_model, F d_hidden, f d_expert, N num_experts, K top_k, L max_loops.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class NaiveFFN:
    """The weights of one layer, with the settings that give them meaning.

    Args:
        norm_D: weight of the norm before the FFN; None where there is none.
        up_FD, down_DF: W_proj and W_out; `gate_FD` is the gate half of a gated W_proj.
        norm_bias_D: makes the norm a LayerNorm, with this bias; otherwise it is an RMSNorm.
        post_norm_D: weight of the RMSNorm after W_out; None where there is none.
        own_norm, own_post_norm: a family's own norms, which may compute others, in their place.
        scale: r, by which the FFN's output is multiplied on its way to the residual stream.
        residuals: for each loop after the first, (A, B) for gate (if any), up and down, whose
            product is added to the weight.
        router_ND: W_g; None without virtual experts.
        loop_head_LD: W_loop; None without a depth pathway, or with constant `loops`.
        loops: so many for every token, and no width pathway.
        width_gain: s, the gain of the routed experts (1 in the paper).
        loop_gains_L: γ, the gain of each loop (all 1 in the paper).
        shared: σ, how much of the full FFN joins the width pathway (0 in the paper).
        fusion: `difficulty`, `average`, `width` or `depth`.
        token_choice: ℓ̂ is the likeliest loop, and its probability is 1 − λ, whatever `fusion` is.
        budget: a token that wants more loops than this stops there; λ follows, L stays.
    """

    norm_D: Tensor | None
    up_FD: Tensor
    down_DF: Tensor
    gate_FD: Tensor | None = None
    gate_bias_F: Tensor | None = None
    up_bias_F: Tensor | None = None
    down_bias_D: Tensor | None = None
    norm_bias_D: Tensor | None = None
    post_norm_D: Tensor | None = None
    own_norm: Callable[[Tensor], Tensor] | None = None
    own_post_norm: Callable[[Tensor], Tensor] | None = None
    scale: float = 1.0
    residuals: list[list[tuple[Tensor, Tensor]]] | None = None
    router_ND: Tensor | None = None
    loop_head_LD: Tensor | None = None
    loops: int | None = None
    width_gain: Tensor | float = 1.0
    loop_gains_L: Tensor | None = None
    shared: float = 0.0
    top_k: int = 2
    d_expert: int = 1
    tau: float = 1.0
    fusion: str = "difficulty"
    soft: bool = False
    token_choice: bool = False
    budget: int | None = None
    normed_controller: bool = False
    eps: float = 1e-6
    activation: Callable[[Tensor], Tensor] = F.silu


def expert_neurons(k: int, num_experts: int, d_expert: int, d_hidden: int) -> list[int]:
    """I(k), the hidden neurons of expert k. Source: Eq. 4–5."""
    if num_experts == 1:
        start = 0
    else:
        stride = Fraction(d_hidden - d_expert, num_experts - 1)
        start = math.floor(k * stride)
    return [j for j in range(d_hidden) if start <= j < start + d_expert]


def rms_norm(weight_D: Tensor, h_D: Tensor, eps: float) -> Tensor:
    """RMSNorm with weight."""
    return h_D * torch.rsqrt(h_D.pow(2).mean() + eps) * weight_D


def norm(w: NaiveFFN, h_D: Tensor) -> Tensor:
    """The norm before the FFN."""
    if w.own_norm is not None:
        return w.own_norm(h_D)
    if w.norm_D is None:
        return h_D
    if w.norm_bias_D is None:
        return rms_norm(w.norm_D, h_D, w.eps)
    centered = h_D - h_D.mean()
    return centered * torch.rsqrt(centered.pow(2).mean() + w.eps) * w.norm_D + w.norm_bias_D


def post_norm(w: NaiveFFN, out_D: Tensor) -> Tensor:
    """The norm after the FFN."""
    if w.own_post_norm is not None:
        return w.own_post_norm(out_D)
    return out_D if w.post_norm_D is None else rms_norm(w.post_norm_D, out_D, w.eps)


def weight_of_loop(w: NaiveFFN, weight: Tensor, index: int, loop: int) -> Tensor:
    """A linear map's weight in a loop, which counts from 0; `index` is that of the map."""
    if w.residuals is None or loop == 0:
        return weight
    a, b = w.residuals[loop - 1][index]
    return weight + b @ a


def projection(w: NaiveFFN, x_D: Tensor, neurons: list[int], loop: int = 0) -> Tensor:
    """W_out[neurons] φ(W_proj[:, neurons] x), without W_out's bias. Source: Eq. 2 and 6."""
    gated = w.gate_FD is not None
    up = weight_of_loop(w, w.up_FD, int(gated), loop)[neurons] @ x_D
    if w.up_bias_F is not None:
        up = up + w.up_bias_F[neurons]
    if w.gate_FD is None:
        a = w.activation(up)
    else:
        gate = weight_of_loop(w, w.gate_FD, 0, loop)[neurons] @ x_D
        if w.gate_bias_F is not None:
            gate = gate + w.gate_bias_F[neurons]
        a = w.activation(gate) * up
    return weight_of_loop(w, w.down_DF, 1 + int(gated), loop)[:, neurons] @ a


def with_bias(w: NaiveFFN, out_D: Tensor) -> Tensor:
    """Plus W_out's bias."""
    return out_D if w.down_bias_D is None else out_D + w.down_bias_D


def dense_step(w: NaiveFFN, h_D: Tensor, loop: int = 0) -> Tensor:
    """F(H) = H + r·γ post(W_out φ(W_proj norm(H))). Source: Eq. 2."""
    everything = list(range(w.up_FD.shape[0]))
    gain = 1.0 if w.loop_gains_L is None else w.loop_gains_L[loop]
    out_D = post_norm(w, with_bias(w, projection(w, norm(w, h_D), everything, loop)))
    return h_D + w.scale * (gain * out_D)


def width_pathway(w: NaiveFFN, h_D: Tensor, router_input_D: Tensor) -> Tensor:
    """Y_width: the top-K virtual experts, each with the residual inside. Source: Eq. 6–8.

    With K = 1 a softmax over the one selected logit would be constant, so the gate is the
    probability over all experts, on the FFN term alone. An output bias is added once, neither
    gated nor scaled; where a norm follows W_out, it is added wherever the norm is applied: to the
    experts' sum and to the full FFN. Without experts only the full FFN is left.
    """
    d_hidden, x_D = w.up_FD.shape[0], norm(w, h_D)
    full_D = projection(w, x_D, list(range(d_hidden)))
    if w.router_ND is None:
        return h_D + w.scale * w.shared * post_norm(w, with_bias(w, full_D))
    num_experts = w.router_ND.shape[0]
    logits_N = w.router_ND @ router_input_D
    chosen = torch.topk(logits_N, w.top_k).indices.tolist()
    gates_K = torch.softmax(logits_N[chosen], dim=0)
    residual_K = gates_K
    if w.top_k == 1:
        gates_K = torch.softmax(logits_N, dim=0)[chosen]
        residual_K = torch.ones_like(gates_K)
    routed_D = residual_D = torch.zeros_like(h_D)
    for g, r, k in zip(gates_K, residual_K, chosen, strict=True):
        neurons = expert_neurons(k, num_experts, w.d_expert, d_hidden)
        residual_D = residual_D + r * h_D
        routed_D = routed_D + g * projection(w, x_D, neurons)
    if w.post_norm_D is None and w.own_post_norm is None:
        update_D = with_bias(w, w.width_gain * routed_D + w.shared * full_D)
    else:
        update_D = w.width_gain * post_norm(w, with_bias(w, routed_D))
        if w.shared:
            update_D = update_D + w.shared * post_norm(w, with_bias(w, full_D))
    return residual_D + w.scale * update_D


def loop_states(w: NaiveFFN, h_D: Tensor, loops: int) -> list[Tensor]:
    """H⁽¹⁾ … H⁽loops⁾. Source: Eq. 9."""
    states, state = [], h_D
    for loop in range(loops):
        state = dense_step(w, state, loop)
        states.append(state)
    return states


def affordable(w: NaiveFFN, loops: int) -> int:
    """As many loops as the budget allows."""
    return loops if w.budget is None else min(loops, w.budget)


def token_choice(w: NaiveFFN, h_D: Tensor, controller_input_D: Tensor) -> tuple[Tensor, int]:
    """Y = g·H_ℓ̂ + (1 − g)·Y_width. Source: Mixture-of-Recursions (arXiv 2507.10524)."""
    assert w.loop_head_LD is not None
    probs_L = torch.softmax(w.loop_head_LD @ controller_input_D, dim=0)
    loops = int(probs_L.argmax()) + 1
    gate = probs_L[loops - 1]
    y_width = width_pathway(w, h_D, controller_input_D)
    loops = affordable(w, loops)
    return gate * loop_states(w, h_D, loops)[-1] + (1 - gate) * y_width, loops


def train_token(w: NaiveFFN, h_D: Tensor, gumbel_noise_L: Tensor | None) -> Tensor:
    """One token of Algorithm 1: all L loops, both pathways, fused. Source: Eq. 3, 7–13."""
    controller_input = norm(w, h_D) if w.normed_controller else h_D
    if w.loops is not None:
        return loop_states(w, h_D, affordable(w, w.loops))[-1]
    if w.token_choice:
        return token_choice(w, h_D, controller_input)[0]
    if w.fusion == "width":
        return width_pathway(w, h_D, controller_input)
    assert w.loop_head_LD is not None
    logits_L = w.loop_head_LD @ controller_input
    max_loops = logits_L.shape[0]
    noise = torch.zeros_like(logits_L) if gumbel_noise_L is None else gumbel_noise_L
    p_L = torch.softmax((logits_L + noise) / w.tau, dim=0)
    if not w.soft:
        one_hot = F.one_hot(p_L.argmax(), max_loops).to(p_L)
        p_L = one_hot + (p_L - p_L.detach())  # exactly one-hot, so that λ = 0 is exact, too
    if w.budget is not None:
        stays_L, moved = [*p_L[: w.budget - 1]], p_L[w.budget - 1 :].sum()
        p_L = torch.stack([*stays_L, moved, *[0 * moved] * (max_loops - w.budget)])
    states = loop_states(w, h_D, max_loops)
    y_depth = sum((p * state for p, state in zip(p_L, states, strict=True)), torch.zeros_like(h_D))
    if w.fusion == "depth":
        return y_depth
    expected_loops = sum((loop + 1) * p for loop, p in enumerate(p_L))
    lam = (max_loops - expected_loops) / max_loops if w.fusion == "difficulty" else 0.5
    return lam * width_pathway(w, h_D, controller_input) + (1 - lam) * y_depth


def infer_token(w: NaiveFFN, h_D: Tensor) -> tuple[Tensor, int]:
    """One token of Algorithm 2: ℓ̂ loops and no more; width is skipped where λ = 0.

    Returns:
        the new hidden state, and how many loops were run.
    """
    controller_input = norm(w, h_D) if w.normed_controller else h_D
    if w.loops is not None:
        loops = affordable(w, w.loops)
        return loop_states(w, h_D, loops)[-1], loops
    if w.token_choice:
        return token_choice(w, h_D, controller_input)
    if w.fusion == "width":
        return width_pathway(w, h_D, controller_input), 1
    assert w.loop_head_LD is not None
    logits_L = w.loop_head_LD @ controller_input
    loops, max_loops = affordable(w, int(logits_L.argmax()) + 1), logits_L.shape[0]
    y_depth = loop_states(w, h_D, loops)[-1]
    lam = {"difficulty": (max_loops - loops) / max_loops, "average": 0.5, "depth": 0.0}[w.fusion]
    if lam == 0:
        return y_depth, loops
    return lam * width_pathway(w, h_D, controller_input) + (1 - lam) * y_depth, loops


def train(w: NaiveFFN, hidden_MD: Tensor, gumbel_noise_ML: Tensor | None = None) -> Tensor:
    """Algorithm 1 for M tokens, [M, D] -> [M, D]; differentiable in every weight and in H."""
    noise = [None] * len(hidden_MD) if gumbel_noise_ML is None else list(gumbel_noise_ML)
    return torch.stack([train_token(w, h, n) for h, n in zip(hidden_MD, noise, strict=True)])


def infer(w: NaiveFFN, hidden_MD: Tensor) -> tuple[Tensor, list[int]]:
    """Algorithm 2 for M tokens, [M, D] -> [M, D], with each token's loop count."""
    outputs, loops = zip(*(infer_token(w, h) for h in hidden_MD), strict=True)
    return torch.stack(outputs), list(loops)
