"""The exact gradient of a hard plan for L forward and ℓ̂ backward FFN applications a token.

With straight-through one-hot p no gradient flows through loops after ℓ̂; they matter only through
the scalars ⟨∂Y, H_ℓ⟩ in the gradient of p. So every loop runs forward, but only a token's first ℓ̂
are differentiated. With v = W_outᵀ ∂Y, the gradients of gates, gains and λ are dot products of v
with activations that are there anyway. Tokens are ordered by loop count, so those still running
are a prefix.

Two memory modes. `keep_activations` saves what W_proj gave in a token's ℓ̂ loops (2·F·ℓ̂ values
beside 3·D); without it only the states U₁ … U_{L−1} are saved (3·D for L = 4, and the layer's own
input), and the backward pass projects once more.

Legend: M tokens, D d_model, F d_hidden, L max_loops, N num_experts, R tokens still running;
U_ℓ = H_ℓ − H₀; `d_x` is the gradient of the loss in x.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from versatileffn.execution.order import count_active, longest_first
from versatileffn.execution.packed_backward import PackedBackward
from versatileffn.execution.packed_forward import PackedForward, Weights
from versatileffn.ffn.dense import FeedForward, Norm, linears
from versatileffn.ffn.plan import ReusePlan


def run_packed_training(
    hidden_MD: Tensor,
    norm: Norm,
    mlp: FeedForward,
    plan: ReusePlan,
    keep_activations: bool = True,
) -> Tensor:
    """Carry out a hard plan, differentiably, doing only the work that the gradient needs.

    Source: Algorithm 1 with one-hot p; docs/algebra.md for the gradient.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        norm: the norm before the FFN, a module.
        mlp: an FFN for which `reads_plain_weights` holds.
        plan: a flat, hard plan for the same M tokens.
        keep_activations: save projections for the backward pass instead of computing them again.

    Returns:
        Y, [M, D]. Its gradient in `loop_probs` is right up to a constant for each token, which
        no parametrization with Σ p = 1 can see.
    """
    assert plan.hard
    assert isinstance(norm, nn.Module)
    return _PackedTraining.apply(
        (norm, mlp, compute_dtype(hidden_MD, mlp), keep_activations),
        plan,
        hidden_MD,
        plan.loop_probs,
        plan.lam,
        plan.gates,
        plan.width_gain,
        plan.loop_gains,
        *norm.parameters(),
        *(linear.weight for linear in linears(mlp)),
    )


def run_recomputed(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
    """`run_packed_training` in the mode that saves states only."""
    return run_packed_training(hidden_MD, norm, mlp, plan, keep_activations=False)


def compute_dtype(hidden_MD: Tensor, mlp: FeedForward) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on, else the weights'."""
    device = hidden_MD.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return mlp.up_proj.weight.dtype


class _PackedTraining(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: tuple[nn.Module, FeedForward, torch.dtype, bool],
        plan: ReusePlan,
        hidden_MD: Tensor,
        loop_probs_ML: Tensor,
        lam_M: Tensor,
        gates_MK: Tensor | None,
        width_gain: Tensor | None,
        loop_gains_L: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        norm, mlp, dtype, keep_activations = layer
        order_M = longest_first(plan.loop_count)
        active = count_active(plan.loop_count, plan.max_loops)()
        cast = Weights.of(norm, mlp, dtype)
        run = PackedForward(
            norm, mlp, cast, plan.take(order_M), active,
            all_loops=ctx.needs_input_grad[3] or ctx.needs_input_grad[4],
            keep_activations=keep_activations,
        )  # fmt: skip
        sorted_MD = run(hidden_MD[order_M])
        ctx.norm, ctx.mlp, ctx.plan, ctx.active = norm, mlp, plan, active
        ctx.all_loops, ctx.num_linears, ctx.num_totals = (
            run.all_loops, len(cast.linears), len(run.totals)
        )  # fmt: skip
        ctx.wanted = [w.dtype if w.requires_grad else None for w in weights]
        ctx.save_for_backward(hidden_MD, order_M, *cast.linears, *run.totals, *run.saved)
        return torch.empty_like(sorted_MD).index_copy_(0, order_M, sorted_MD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output_MD: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, order_M, *rest = ctx.saved_tensors
        linear_weights, rest = rest[: ctx.num_linears], rest[ctx.num_linears :]
        totals, saved = rest[: ctx.num_totals], rest[ctx.num_totals :]
        weights = Weights(list(ctx.norm.parameters()), linear_weights)
        with torch.autocast(d_output_MD.device.type, enabled=False):
            run = PackedBackward(
                ctx.norm, ctx.mlp, weights, ctx.plan.take(order_M), ctx.active,
                hidden_MD[order_M], totals, saved, d_output_MD[order_M],
            )  # fmt: skip
            d_hidden_MD = run.chain()
            plan_grads = run.plan_gradients(ctx.all_loops)
            weight_grads = run.weight_gradients(ctx.wanted)
        inverse_M = torch.empty_like(order_M)
        inverse_M[order_M] = torch.arange(len(order_M), device=order_M.device)
        d_probs_ML, d_lam_M, d_gates_MK, d_width_gain, d_loop_gains_L = plan_grads
        unsorted = [
            None if grad is None else grad[inverse_M]
            for grad in (d_hidden_MD, d_probs_ML, d_lam_M, d_gates_MK)
        ]
        return (None, None, *unsorted, d_width_gain, d_loop_gains_L, *weight_grads)
