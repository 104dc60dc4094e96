"""The exact gradient of a hard plan for L forward and ℓ̂ backward FFN applications a token.

With straight-through one-hot p no gradient flows through loops after ℓ̂; they matter only through
the scalars ⟨∂Y, H_ℓ⟩ in the gradient of p. So every loop runs forward, but only a token's first ℓ̂
are differentiated. With v = W_outᵀ ∂Y, the gradients of gates, gains and λ are dot products of v
with activations that are there anyway. Tokens are ordered by loop count, so those still running
are a prefix.

Legend: M tokens, D d_model, F d_hidden, L max_loops, N num_experts, R tokens still running;
U_ℓ = H_ℓ − H₀; `d_x` is the gradient of the loss in x.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from versatileffn.execution.blend import blend_first_loop
from versatileffn.execution.packed import active_tokens, routed_activations
from versatileffn.execution.packed_backward import Layer, Loop, PackedBackward
from versatileffn.ffn.dense import FeedForward, Norm, activate, linears
from versatileffn.ffn.plan import ReusePlan


def run_packed_training(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
    """Carry out a hard plan, differentiably, doing only the work that the gradient needs.

    Source: Algorithm 1 with one-hot p; docs/algebra.md for the gradient.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        norm: the norm before the FFN, a module.
        mlp: an FFN for which `reads_plain_weights` holds.
        plan: a flat, hard plan for the same M tokens.

    Returns:
        Y, [M, D]. Its gradient in `loop_probs` is right up to a constant for each token, which
        no parametrization with Σ p = 1 can see.
    """
    assert plan.hard
    assert isinstance(norm, nn.Module)
    weights = [*norm.parameters(), *(linear.weight for linear in linears(mlp))]
    return _PackedTraining.apply(
        Layer(norm, mlp),
        plan,
        hidden_MD,
        plan.loop_probs,
        plan.lam,
        plan.gates,
        plan.width_gain,
        plan.loop_gains,
        *weights,
    )


def reads_plain_weights(norm: Norm, mlp: FeedForward) -> bool:
    """Whether the weights may be read: plain, bias-free linears that nothing has wrapped or hooked.

    Adapters, quantized weights and parametrizations change what calling a linear does, and
    reading its weight would leave them out.
    """
    return isinstance(norm, nn.Module) and all(
        type(linear) is nn.Linear
        and linear.bias is None
        and type(linear.weight) in (Tensor, nn.Parameter)
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and not linear._backward_hooks
        for linear in linears(mlp)
    )


class _PackedTraining(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        plan: ReusePlan,
        hidden_MD: Tensor,
        loop_probs_ML: Tensor,
        lam_M: Tensor,
        gates_MK: Tensor | None,
        width_gain: Tensor | None,
        loop_gains_L: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        order_M = plan.loop_count.argsort(descending=True, stable=True)
        plan = plan.take(order_M)
        active = active_tokens(plan)
        active += [0] * (plan.max_loops + 1 - len(active))
        start_MD = hidden_MD[order_M]
        all_loops = ctx.needs_input_grad[3]
        kept_M1 = 1 - plan.lam[:, None]

        loops: list[Loop] = []
        totals: list[Tensor] = []  # U_1 …, for all tokens whose p needs a gradient
        exit_MF = base_MD = last_MF = width_RF = None
        total_MD = torch.zeros_like(start_MD)
        for loop in range(plan.max_loops):
            running, staying = active[loop], active[loop + 1]
            rows = len(start_MD) if all_loops else running
            leave = slice(staying, running)
            state_MD = start_MD[:rows] + total_MD[:rows]
            x_MD = layer.norm(state_MD)
            projected = tuple(linear(x_MD) for linear in linears(layer.mlp)[:-1])
            a_MF = activate(layer.mlp, *projected)
            loops.append(
                Loop(state_MD[:running], x_MD[:running], tuple(p[:running] for p in projected))
            )
            gain = kept_M1.new_ones(()) if loop_gains_L is None else loop_gains_L[loop]
            weight_R1 = kept_M1[leave] * gain
            if exit_MF is None or base_MD is None:
                exit_MF, base_MD = torch.empty_like(a_MF), torch.zeros_like(start_MD)
                width_RF = routed_activations(plan.take(slice(staying)), a_MF[:staying])
                exit_MF[leave] = blend_first_loop(plan.take(leave), a_MF[leave], weight_R1)
            else:
                exit_MF[leave] = weight_R1.to(a_MF.dtype) * a_MF[leave]
                if width_RF is not None:
                    exit_MF[leave] += width_RF[leave]
                shared_RD = plan.shared * totals[0][leave]
                kept = kept_M1[leave].to(total_MD.dtype)
                base_MD[leave] = torch.lerp(shared_RD, total_MD[leave], kept)
            if loop + 1 < plan.max_loops:
                rows = len(start_MD) if all_loops else staying
                update_MD = layer.mlp.down_proj(a_MF[:rows])
                if loop_gains_L is not None:
                    update_MD = gain.to(update_MD.dtype) * update_MD
                total_MD = total_MD[:rows] + update_MD
                totals.append(total_MD)
            else:
                last_MF = a_MF[running:]
        assert exit_MF is not None
        assert base_MD is not None
        assert last_MF is not None
        output_MD = torch.empty_like(hidden_MD)
        output_MD[order_M] = (start_MD + base_MD + layer.mlp.down_proj(exit_MF)).to(hidden_MD.dtype)

        ctx.layer, ctx.plan, ctx.active, ctx.num_weights = layer, plan, active, len(weights)
        ctx.num_totals = len(totals)
        saved = [t for loop in loops for t in (loop.state_RD, loop.x_RD, *loop.projected_RF)]
        ctx.save_for_backward(order_M, exit_MF, last_MF, *weights, *totals, *saved)
        return output_MD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output_MD: Tensor) -> tuple[Tensor | None, ...]:
        order_M, exit_MF, last_MF, *rest = ctx.saved_tensors
        weights, rest = rest[: ctx.num_weights], rest[ctx.num_weights :]
        totals, rest = rest[: ctx.num_totals], rest[ctx.num_totals :]
        step = len(rest) // ctx.plan.max_loops
        chunks = [rest[i : i + step] for i in range(0, len(rest), step)]
        loops = [Loop(state, x, tuple(projected)) for state, x, *projected in chunks]
        run = PackedBackward(
            ctx.layer, ctx.plan, ctx.active, weights, loops, exit_MF, d_output_MD[order_M]
        )
        d_hidden_MD = run.chain()
        d_probs_ML = run.loop_probs(totals, last_MF) if ctx.needs_input_grad[3] else None
        d_lam_M, d_gates_MK, d_width_gain = run.width()
        inverse_M = order_M.argsort()

        def unsort(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[inverse_M]

        return (
            None,
            None,
            unsort(d_hidden_MD),
            unsort(d_probs_ML),
            unsort(d_lam_M),
            unsort(d_gates_MK),
            d_width_gain,
            run.loop_gains(),
            *run.weights(),
        )
