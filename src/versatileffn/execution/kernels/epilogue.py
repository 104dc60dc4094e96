"""What follows a product, on its tile: the blend after W_proj, residual and exit after W_out.

With U_ℓ = H_ℓ − H₀, rows that leave after loop ℓ, and γ, λ, σ, s, m as in docs/algebra.md:

    multiplied by W_out    stays:  γ_ℓ a_ℓ
                           leaves: (1 − λ) γ_ℓ a_ℓ + λ s·m ⊙ a₁, and in loop 1 + λσ a₁
    after it, with u       stays:  U_ℓ = U_{ℓ−1} + u
                           leaves: Y = H₀ + λσU₁ + (1 − λ) U_{ℓ−1} + u, where U₀ = 0, and in
                                   loop 1 no λσU₁: it is in u

λ s·m ⊙ a₁ of a row that stays is kept from loop 1 on: only the K selected slices of it, so K·f
values a row, and none where λ = 0. A second product in loop 1 would have cost F·D multiplications
a row to save 2·K·f values of traffic.

Legend: M tokens (or rows: their sorted order), D d_model, F d_hidden, f d_expert, K top_k.
"""

# mypy: allow-untyped-defs
# Triton reads annotations of kernel arguments as types of its own.

import triton
import triton.language as tl


@triton.jit
def blend_and_store(
    a,
    rows,
    tokens,
    alive,
    neurons,
    loop,
    loop_count_M,
    lam_M,
    gates_MK,
    experts_MK,
    width_gain,
    loop_gains_L,
    routed_MKf,
    blend_MF,
    F,
    span,
    shared,
    TOP_K: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERT_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Weigh a tile of a_ℓ for W_out and store it; keep the routed slices of rows that stay.

    Args:
        a: hidden activations, float32.
        rows, tokens: where the tile's tokens are in sorted and in their own order.
        alive: which of them exist and run this loop.
        neurons: hidden neurons of the tile.
        span: F − f, from which Eq. 4 has the slices' starts.
        TOP_K: 0 without a width pathway.
        STRIDE: S of Eq. 4 where it is whole, otherwise 0.
    """
    inside = alive[:, None] & (neurons < F)[None, :]
    stays = tl.load(loop_count_M + tokens, mask=alive, other=0) > loop
    lam = tl.load(lam_M + tokens, mask=alive, other=0.0).to(tl.float32)
    gain = 1.0
    if loop_gains_L is not None:
        gain = tl.load(loop_gains_L + loop - 1).to(tl.float32)
    leaving = (1.0 - lam) * gain
    if FIRST:
        leaving += lam * shared
    weight = tl.where(stays, gain, leaving)
    scale = lam
    if width_gain is not None:
        scale = lam * tl.load(width_gain).to(tl.float32)
    weights = tl.broadcast_to(weight[:, None], a.shape)
    kept = tl.zeros_like(a)
    for k in tl.static_range(TOP_K):
        expert = tl.load(experts_MK + tokens * TOP_K + k, mask=alive, other=0).to(tl.int64)
        if STRIDE > 0:  # known to the compiler, so that it moves whole vectors
            start = expert.to(tl.int32) * STRIDE
        else:
            start = (expert * span // max(NUM_EXPERTS - 1, 1)).to(tl.int32)
        slot = neurons[None, :] - start[:, None]
        # λ = 0 needs nothing: at ℓ̂ = L the width pathway is skipped
        chosen = inside & (slot >= 0) & (slot < EXPERT_SIZE) & (lam != 0)[:, None]
        places = routed_MKf + (rows[:, None] * TOP_K + k) * EXPERT_SIZE + slot
        if FIRST:
            gate = tl.load(gates_MK + tokens * TOP_K + k, mask=alive, other=0.0).to(tl.float32)
            share = (scale * gate)[:, None]
            routed = (share * a).to(routed_MKf.dtype.element_ty)
            tl.store(places, routed, mask=chosen & stays[:, None])
            weights += tl.where(chosen & (stays == 0)[:, None], share, 0.0)
        else:
            kept += tl.load(places, mask=chosen & (stays == 0)[:, None], other=0.0).to(tl.float32)
    blend = (weights * a + kept).to(blend_MF.dtype.element_ty)
    tl.store(blend_MF + rows[:, None] * F + neurons[None, :], blend, mask=inside)


@triton.jit
def add_and_leave(
    update,
    rows,
    tokens,
    alive,
    columns,
    loop,
    loop_count_M,
    lam_M,
    hidden_MD,
    first_MD,
    previous_MD,
    next_MD,
    output_MD,
    D,
    shared,
    FIRST: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Write U_ℓ of rows that stay, and Y of rows that leave to the tokens' own places.

    Args:
        update: a tile of the product with W_out, float32.
        rows, tokens, alive: see `blend_and_store`.
        columns: the tile's place in D.
        first_MD, previous_MD, next_MD: U₁, U_{ℓ−1}, U_ℓ; the last is never one that is read.
        SHARED: σ ≠ 0.
    """
    kind = hidden_MD.dtype.element_ty
    # As a linear would have rounded it: then a row that leaves in loop 1 and one whose later
    # gains are zero, which has U₁ from memory, end in the same bits.
    update = update.to(kind).to(tl.float32)
    inside = alive[:, None] & (columns < D)[None, :]
    stays = inside & (tl.load(loop_count_M + tokens, mask=alive, other=0) > loop)[:, None]
    leaves = inside & (stays == 0)
    at_row = rows[:, None] * D + columns[None, :]
    at_token = tokens[:, None] * D + columns[None, :]
    total = update
    mixed = update
    if not FIRST:
        previous = tl.load(previous_MD + at_row, mask=inside, other=0.0).to(tl.float32)
        total = previous + update
        lam = tl.load(lam_M + tokens, mask=alive, other=0.0).to(tl.float32)
        base = tl.zeros_like(update)
        if SHARED:
            base = shared * tl.load(first_MD + at_row, mask=leaves, other=0.0).to(tl.float32)
        mixed = base + (1.0 - lam)[:, None] * (previous - base) + update
    tl.store(next_MD + at_row, total.to(kind), mask=stays)
    start = tl.load(hidden_MD + at_token, mask=leaves, other=0.0).to(tl.float32)
    tl.store(output_MD + at_token, (start + mixed).to(kind), mask=leaves)
