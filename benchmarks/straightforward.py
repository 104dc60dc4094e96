"""The released schedule, written anew: what a careful reader of the paper would write first.

Every virtual expert gathers its tokens, multiplies them by its slice of the weights, and adds the
result back. At inference every token runs to the batch's largest loop count; in training all loops
and all experts are under autograd. It takes what an executor takes, so both can be held together.

Legend: M tokens, D d_model, f d_expert, R tokens of one expert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.view import FFNView


def run_straightforward(hidden_MD: Tensor, view: FFNView, plan: ReusePlan) -> Tensor:
    """Carry out a plan as the released code schedules it. Source: Algorithms 1 and 2.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        view: the FFN: plain linears without biases, no post-norm.
        plan: a flat plan in the paper's form: no learned gains, no shared expert.

    Returns:
        Y, [M, D].

    Raises:
        ValueError: the plan or the FFN isn't in the paper's form.
    """
    if plan.loop_gains is not None or plan.width_gain is not None or plan.shared:
        raise ValueError("the released schedule knows no learned gains and no shared expert")
    if view.down_bias is not None:
        raise ValueError("the released schedule knows no biases")
    if torch.is_grad_enabled():
        return _train(hidden_MD, view, plan)
    return _infer(hidden_MD, view, plan)


def _train(hidden_MD: Tensor, view: FFNView, plan: ReusePlan) -> Tensor:
    """All L loops and every pathway. Source: Algorithm 1."""
    state_MD, depth_MD = hidden_MD, torch.zeros_like(hidden_MD)
    for loop in range(plan.max_loops):
        state_MD = state_MD + view.update(view.hidden(state_MD))
        depth_MD = depth_MD + plan.loop_probs[:, loop, None].to(state_MD.dtype) * state_MD
    if plan.gates is None:
        return depth_MD
    width_MD = _width(hidden_MD, view, plan)
    lam_M1 = plan.lam[:, None].to(depth_MD.dtype)
    return lam_M1 * width_MD + (1 - lam_M1) * depth_MD


def _infer(hidden_MD: Tensor, view: FFNView, plan: ReusePlan) -> Tensor:
    """Largest loop count for all, each token's own result kept. Source: Algorithm 2."""
    state_MD = depth_MD = hidden_MD
    for loop in range(1, int(plan.loop_count.max()) + 1):
        state_MD = state_MD + view.update(view.hidden(state_MD))
        depth_MD = torch.where((plan.loop_count == loop)[:, None], state_MD, depth_MD)
    if plan.gates is None:
        return depth_MD
    wide_R = plan.lam.nonzero()[:, 0]  # the width pathway is skipped where λ = 0
    if not len(wide_R):
        return depth_MD
    width_RD = _width(hidden_MD[wide_R], view, plan.take(wide_R))
    lam_R1 = plan.lam[wide_R, None].to(depth_MD.dtype)
    return depth_MD.index_copy(0, wide_R, lam_R1 * width_RD + (1 - lam_R1) * depth_MD[wide_R])


def _width(hidden_MD: Tensor, view: FFNView, plan: ReusePlan) -> Tensor:
    """Y_width by gather, sliced products and scatter, one expert at a time. Source: Eq. 6–8."""
    assert plan.gates is not None
    assert plan.experts is not None
    assert plan.slices is not None
    x_MD = view.norm(hidden_MD)
    sum_MD = torch.zeros_like(hidden_MD)
    for expert, start in enumerate(plan.slices.starts):
        token_R, slot_R = torch.where(plan.experts == expert)
        if not len(token_R):
            continue
        neurons = slice(start, start + plan.slices.d_expert)
        x_RD = x_MD[token_R]
        projected = [F.linear(x_RD, weight_of(linear)[neurons]) for linear in view.proj]
        output_RD = F.linear(view.phi(projected), weight_of(view.down)[:, neurons])
        gate_R1 = plan.gates[token_R, slot_R, None].to(output_RD.dtype)
        sum_MD.index_add_(0, token_R, (gate_R1 * output_RD).to(sum_MD.dtype))
    return hidden_MD + sum_MD


def weight_of(linear: nn.Module) -> Tensor:
    """The matrix of a plain linear map."""
    assert isinstance(linear, nn.Linear)
    return linear.weight
