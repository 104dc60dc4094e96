"""The entrance: a custom operator, so that a compiled model has no graph break around it.

Legend: M tokens, D d_model, F d_hidden, K top_k, L max_loops.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from versatileffn.execution.flops import forward_flops, longest_for_all, planned_loops
from versatileffn.execution.kernels.support import activation_name, unsupported
from versatileffn.execution.norms import RMSNorm
from versatileffn.ffn.dense import FeedForward, Norm
from versatileffn.ffn.plan import ReusePlan


def run_triton(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> Tensor:
    """Carry out a hard plan without gradients, on CUDA. Source: Algorithm 2.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        norm: the RMSNorm before the FFN, a module.
        mlp: the FFN; its weights are read.
        plan: a flat plan for the same M tokens, for which `unsupported` has no reason.

    Returns:
        Y, [M, D].
    """
    slices, gates = plan.slices, plan.gates
    rms = RMSNorm.of(norm)
    assert rms is not None
    gate_proj = getattr(mlp, "gate_proj", None)
    return reuse_forward(
        hidden_MD,
        rms.weight,
        rms.eps,
        None if gate_proj is None else gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
        str(activation_name(mlp)),
        plan.loop_count,
        plan.lam,
        gates,
        plan.experts if gates is not None else None,
        plan.width_gain if gates is not None else None,
        plan.loop_gains,
        plan.shared if gates is not None else 0.0,
        plan.max_loops,
        0 if slices is None or gates is None else slices.num_experts,
        0 if slices is None or gates is None else slices.d_expert,
    )


def supports(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> bool:
    """Whether `run_triton` may carry out this plan here; `unsupported` says why not."""
    return unsupported(hidden_MD, norm, mlp, plan) is None


@torch.library.custom_op("versatileffn::reuse_forward", mutates_args=())
def reuse_forward(
    hidden_MD: Tensor,
    norm_D: Tensor,
    eps: float,
    gate_FD: Tensor | None,
    up_FD: Tensor,
    down_DF: Tensor,
    activation: str,
    loop_count_M: Tensor,
    lam_M: Tensor,
    gates_MK: Tensor | None,
    experts_MK: Tensor | None,
    width_gain: Tensor | None,
    loop_gains_L: Tensor | None,
    shared: float,
    max_loops: int,
    num_experts: int,
    expert_size: int,
) -> Tensor:
    """Y of a hard plan, [M, D]. The arguments are those of `launch.Work`."""
    from versatileffn.execution.kernels.launch import Work, run_few, run_many

    if len(hidden_MD) == 0:
        return torch.empty_like(hidden_MD)
    work = Work(
        hidden_MD.contiguous(),
        norm_D.contiguous(),
        eps,
        gate_FD,
        up_FD,
        down_DF,
        activation,
        loop_count_M.contiguous(),
        lam_M.contiguous(),
        None if gates_MK is None else gates_MK.contiguous(),
        None if experts_MK is None else experts_MK.contiguous(),
        width_gain,
        loop_gains_L,
        shared,
        max_loops,
        num_experts,
        expert_size,
    )
    few = _are_few(hidden_MD)
    if not hidden_MD.is_cuda:
        return run_few(work) if few else run_many(work)
    with torch.cuda.device(hidden_MD.device):
        return run_few(work) if few else run_many(work)


@reuse_forward.register_fake
def _(hidden_MD: Tensor, *_arguments: object) -> Tensor:
    return torch.empty_like(hidden_MD, memory_format=torch.contiguous_format)


def _are_few(hidden_MD: Tensor) -> bool:
    from versatileffn.execution.kernels.launch import DECODE_TOKENS

    # float16 overflows where the norm is applied after the product
    return len(hidden_MD) <= DECODE_TOKENS and hidden_MD.dtype != torch.float16


@register_flop_formula(torch.ops.versatileffn.reuse_forward, get_raw=True)
def _(*arguments: Any, out_val: Any = None) -> int:
    """A few tokens all run as long as the longest of them."""
    hidden_MD, _, _, gate_FD, up_FD, down_DF, _, loop_count_M = arguments[:8]
    count = longest_for_all if _are_few(hidden_MD) else planned_loops
    weights = [up_FD, down_DF] if gate_FD is None else [gate_FD, up_FD, down_DF]
    return forward_flops(count(loop_count_M), weights)
