"""RMSNorm of the tokens that run a loop, gathered into the order of loop counts.

Legend: M tokens, D d_model, U_ℓ = H_ℓ − H₀.
"""

# mypy: allow-untyped-defs
# Triton reads annotations of kernel arguments as types of its own.

import triton
import triton.language as tl


@triton.jit
def normalize(
    hidden_MD,
    total_MD,
    weight_D,
    x_MD,
    order_M,
    active_L,
    loop,
    eps,
    D,
    BLOCK_D: tl.constexpr,
    FIRST: tl.constexpr,
):
    """x = norm(H₀ + U_{ℓ−1}) of one token; H₀ stands in the tokens' own order, U and x sorted.

    The sum and the mean square are float32, whatever is stored.
    """
    row = tl.program_id(0)
    if row >= tl.load(active_L + loop - 1):
        return
    token = tl.load(order_M + row).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    state = tl.load(hidden_MD + token * D + columns, mask=inside, other=0.0).to(tl.float32)
    if not FIRST:
        total = tl.load(total_MD + row.to(tl.int64) * D + columns, mask=inside, other=0.0)
        state += total.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(state * state) / D + eps)
    weight = tl.load(weight_D + columns, mask=inside, other=0.0).to(tl.float32)
    x = state * rstd * weight
    tl.store(x_MD + row.to(tl.int64) * D + columns, x.to(x_MD.dtype.element_ty), mask=inside)
