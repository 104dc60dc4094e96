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
        norm_D: weight of the RMSNorm before the FFN.
        up_FD, down_DF: W_proj and W_out; `gate_FD` is the gate half of a gated W_proj.
        router_ND: W_g; None without a width pathway.
        loop_head_LD: W_loop; None without a depth pathway.
        width_gain: s, the gain of the routed experts (1 in the paper).
        loop_gains_L: γ, the gain of each loop (all 1 in the paper).
        shared: σ, how much of the full FFN joins the width pathway (0 in the paper).
        fusion: `difficulty`, `average`, `width` or `depth`.
    """

    norm_D: Tensor
    up_FD: Tensor
    down_DF: Tensor
    gate_FD: Tensor | None = None
    gate_bias_F: Tensor | None = None
    up_bias_F: Tensor | None = None
    down_bias_D: Tensor | None = None
    router_ND: Tensor | None = None
    loop_head_LD: Tensor | None = None
    width_gain: Tensor | float = 1.0
    loop_gains_L: Tensor | None = None
    shared: float = 0.0
    top_k: int = 2
    d_expert: int = 1
    tau: float = 1.0
    fusion: str = "difficulty"
    soft: bool = False
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


def rms_norm(w: NaiveFFN, h_D: Tensor) -> Tensor:
    """RMSNorm with weight."""
    return h_D * torch.rsqrt(h_D.pow(2).mean() + w.eps) * w.norm_D


def projection(w: NaiveFFN, x_D: Tensor, neurons: list[int], with_bias: bool) -> Tensor:
    """W_out[neurons] φ(W_proj[:, neurons] x), without the residual. Source: Eq. 2 and 6."""
    up = w.up_FD[neurons] @ x_D
    if w.up_bias_F is not None:
        up = up + w.up_bias_F[neurons]
    if w.gate_FD is None:
        a = w.activation(up)
    else:
        gate = w.gate_FD[neurons] @ x_D
        if w.gate_bias_F is not None:
            gate = gate + w.gate_bias_F[neurons]
        a = w.activation(gate) * up
    out = w.down_DF[:, neurons] @ a
    if with_bias and w.down_bias_D is not None:
        out = out + w.down_bias_D
    return out


def dense_step(w: NaiveFFN, h_D: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """F(H) = H + γ W_out φ(W_proj norm(H)). Source: Eq. 2."""
    everything = list(range(w.up_FD.shape[0]))
    return h_D + gain * projection(w, rms_norm(w, h_D), everything, with_bias=True)


def width_pathway(w: NaiveFFN, h_D: Tensor, router_input_D: Tensor) -> Tensor:
    """Y_width: the top-K virtual experts, each with the residual inside. Source: Eq. 6–8.

    An output bias is added once. With K = 1 a softmax over the one selected logit would be
    constant, so the gate is the probability over all experts, on the FFN term alone.
    """
    assert w.router_ND is not None
    num_experts, d_hidden = w.router_ND.shape[0], w.up_FD.shape[0]
    x_D = rms_norm(w, h_D)
    logits_N = w.router_ND @ router_input_D
    chosen = torch.topk(logits_N, w.top_k).indices.tolist()
    gates_K = torch.softmax(logits_N[chosen], dim=0)
    residual_K = gates_K
    if w.top_k == 1:
        gates_K = torch.softmax(logits_N, dim=0)[chosen]
        residual_K = torch.ones_like(gates_K)
    y_D = torch.zeros_like(h_D)
    for g, r, k in zip(gates_K, residual_K, chosen, strict=True):
        neurons = expert_neurons(k, num_experts, w.d_expert, d_hidden)
        y_D = y_D + r * h_D + w.width_gain * g * projection(w, x_D, neurons, with_bias=False)
    if w.shared:
        y_D = y_D + w.shared * projection(w, x_D, list(range(d_hidden)), with_bias=False)
    if w.down_bias_D is not None:
        y_D = y_D + w.down_bias_D
    return y_D


def loop_states(w: NaiveFFN, h_D: Tensor, loops: int) -> list[Tensor]:
    """H⁽¹⁾ … H⁽loops⁾. Source: Eq. 9."""
    states, state = [], h_D
    for loop in range(loops):
        gain = 1.0 if w.loop_gains_L is None else w.loop_gains_L[loop]
        state = dense_step(w, state, gain)
        states.append(state)
    return states


def train_token(w: NaiveFFN, h_D: Tensor, gumbel_noise_L: Tensor | None) -> Tensor:
    """One token of Algorithm 1: all L loops, both pathways, fused. Source: Eq. 3, 7–13."""
    controller_input = rms_norm(w, h_D) if w.normed_controller else h_D
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
    controller_input = rms_norm(w, h_D) if w.normed_controller else h_D
    if w.fusion == "width":
        return width_pathway(w, h_D, controller_input), 1
    assert w.loop_head_LD is not None
    logits_L = w.loop_head_LD @ controller_input
    loops, max_loops = int(logits_L.argmax()) + 1, logits_L.shape[0]
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
