"""The entrance: a custom operator, so that a compiled model has no graph break around it.

Experimental: these kernels have never run on a GPU, so `auto` doesn't choose them.

Legend: M tokens, D d_model, F d_hidden, L max_loops.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from versatileffn.execution.flops import forward_flops, longest_for_all, planned_loops
from versatileffn.execution.kernels.support import activation_name
from versatileffn.execution.norms import RMSNorm
from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView

SCHEMA = (
    "Tensor hidden, Tensor norm, float eps, Tensor[] proj, Tensor down, str activation, "
    "Tensor loop_count, Tensor kept, Tensor? routed, Tensor? owners, Tensor? gains, float shared, "
    "int max_loops"
)
"""`launch.Work`, in the language of operators."""


def run_triton(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """Carry out a hard plan without gradients, on CUDA. Source: Algorithm 2.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        view: an FFN whose weights are read.
        weights: of the same M tokens; `unsupported` has no reason against both.

    Returns:
        (Y − H)/r, [M, D].
    """
    norm, slices = RMSNorm.of(view.norm), weights.slices
    assert norm is not None
    routed_MN, kept_M = weights.routed_weights(), weights.kept_M1[:, 0].contiguous()
    owner_F = None if slices is None else slices.owner_of_neuron(hidden_MD.device)
    return reuse_forward(
        hidden_MD.contiguous(), norm.weight, norm.eps, [linear.weight for linear in view.proj],
        view.down.weight, str(activation_name(view)), weights.loop_count.contiguous(), kept_M,
        None if routed_MN is None else routed_MN.contiguous(), owner_F, weights.gains_L,
        weights.shared, weights.max_loops,
    )  # fmt: skip


@torch.library.custom_op(
    "versatileffn::reuse_forward", mutates_args=(), schema=f"({SCHEMA}) -> Tensor"
)
def reuse_forward(hidden_MD: Tensor, *arguments: Any) -> Tensor:
    """(Y − H)/r of a hard plan, [M, D]. The arguments are those of `launch.Work`."""
    from versatileffn.execution.kernels.launch import Work, run_few, run_many

    if len(hidden_MD) == 0:
        return torch.empty_like(hidden_MD)
    work, run = Work(hidden_MD, *arguments), run_few if _are_few(hidden_MD) else run_many
    if not hidden_MD.is_cuda:
        return run(work)
    with torch.cuda.device(hidden_MD.device):
        return run(work)


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
    hidden_MD, _, _, proj, down_DF, _, loop_count_M = arguments[:7]
    count = longest_for_all if _are_few(hidden_MD) else planned_loops
    return forward_flops(count(loop_count_M), [*proj, down_DF])
