"""What torch's FLOP counter is told of our operators, into which it can't look.

How much a plan is to do depends on its loop counts, so these formulas read the tensors and not
their shapes alone. 2 FLOPs per multiply-add; tokens that a kernel's tile is padded with aren't
counted, as in torch's own formulas.

Legend: M tokens, D d_model, F d_hidden, L max_loops.
"""

from collections.abc import Sequence

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from versatileffn.errors import ConfigError


def forward_flops(rows: int, linears: Sequence[Tensor]) -> int:
    """Of `rows` FFN applications: each row meets gate (if any), up and down once."""
    return 2 * rows * sum(linear.numel() for linear in linears)


def backward_flops(loop_count_M: Tensor, max_loops: int, linears: Sequence[Tensor]) -> int:
    """Of the backward pass that keeps states only: it projects once more.

    Source: `packed_backward.py`. Of W_out, its transpose meets each token once for v and once for
    every later loop; of W_proj, each row once forward and once backward, and a token's last state
    where it left before loop L; of each weight's gradient, all rows.

    Args:
        loop_count_M: ℓ̂.
        max_loops: L.
        linears: gate (if any), up and down.
    """
    proj, down = sum(linear.numel() for linear in linears[:-1]), linears[-1].numel()
    rows = planned_loops(loop_count_M)
    left_early = int((loop_count_M < max_loops).sum())
    return 2 * (rows * down + (2 * rows + left_early) * proj + rows * (proj + down))


def planned_loops(loop_count_M: Tensor) -> int:
    """Σ ℓ̂, the FFN applications that a plan asks for.

    Raises:
        ConfigError: there are no values to read, as in a fake or meta tensor.
    """
    _check_real(loop_count_M)
    return int(loop_count_M.sum())


def longest_for_all(loop_count_M: Tensor) -> int:
    """M · max ℓ̂, the FFN applications where all tokens run as long as the longest."""
    _check_real(loop_count_M)
    return len(loop_count_M) * int(loop_count_M.max()) if len(loop_count_M) else 0


def _check_real(loop_count_M: Tensor) -> None:
    if loop_count_M.is_meta or isinstance(loop_count_M, FakeTensor):
        raise ConfigError(
            "the FLOPs of a packed FFN depend on each token's loops, which a fake or meta tensor "
            "doesn't have: count with real tensors, or `versatileffn flops` for a formula"
        )
