"""The released schedule, written anew: what a careful reader of the paper would write first.

README.md says what it does. It takes what an executor takes, so both can be held together.

Legend: M tokens, D d_model, f d_expert, R tokens of one expert or of the width pathway.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
        depth_MD = _all_loops(hidden_MD, view, plan)
        return depth_MD if plan.gates is None else _with_width(hidden_MD, depth_MD, view, plan)
    depth_MD = _longest_loops(hidden_MD, view, plan)
    wide_R = plan.lam.nonzero()[:, 0]  # the width pathway is skipped where λ = 0
    if plan.gates is None or not len(wide_R):
        return depth_MD
    both_RD = _with_width(hidden_MD[wide_R], depth_MD[wide_R], view, plan.take(wide_R))
    return depth_MD.index_copy(0, wide_R, both_RD)


def _all_loops(hidden_MD: Tensor, view: FFNView, plan: ReusePlan) -> Tensor:
    """Y_depth of all L loops, for the gradient. Source: Algorithm 1."""
    state_MD, depth_MD = hidden_MD, torch.zeros_like(hidden_MD)
    for loop in range(plan.max_loops):
        state_MD = state_MD + view.update(view.hidden(state_MD))
        depth_MD = depth_MD + plan.loop_probs[:, loop, None].to(state_MD.dtype) * state_MD
    return depth_MD


def _longest_loops(hidden_MD: Tensor, view: FFNView, plan: ReusePlan) -> Tensor:
    """Y_depth: the largest loop count for all, each token's own kept. Source: Algorithm 2."""
    state_MD = depth_MD = hidden_MD
    for loop in range(1, int(plan.loop_count.max()) + 1):
        state_MD = state_MD + view.update(view.hidden(state_MD))
        depth_MD = torch.where((plan.loop_count == loop)[:, None], state_MD, depth_MD)
    return depth_MD


def _with_width(hidden_MD: Tensor, depth_MD: Tensor, view: FFNView, plan: Any) -> Tensor:
    """λ·Y_width + (1 − λ)·Y_depth; Y_width by gather, sliced products and scatter, one expert at a
    time. Source: Eq. 3, 6–8."""
    x_MD, sum_MD = view.norm(hidden_MD), torch.zeros_like(hidden_MD)
    weights: list[Any] = [linear.weight for linear in view.linears]
    for expert, start in enumerate(plan.slices.starts):
        token_R, slot_R = torch.where(plan.experts == expert)
        if not len(token_R):
            continue
        neurons, x_RD = slice(start, start + plan.slices.d_expert), x_MD[token_R]
        projected = [F.linear(x_RD, weight[neurons]) for weight in weights[:-1]]
        output_RD = F.linear(view.phi(projected), weights[-1][:, neurons])
        gate_R1 = plan.gates[token_R, slot_R, None].to(output_RD.dtype)
        sum_MD.index_add_(0, token_R, (gate_R1 * output_RD).to(sum_MD.dtype))
    lam_M1 = plan.lam[:, None].to(depth_MD.dtype)
    return lam_M1 * (hidden_MD + sum_MD) + (1 - lam_M1) * depth_MD
