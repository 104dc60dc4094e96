"""What follows a product, on its tile: the blend after W_proj, total and exit after W_out.

With U_ℓ = H_ℓ − H₀, rows that leave after loop ℓ, and γ, λ, σ, s, m as in docs/algebra.md:

    multiplied by W_out    stays:  γ_ℓ a_ℓ
                           leaves: (1 − λ) γ_ℓ a_ℓ + λ s·m ⊙ a₁, and in loop 1 + λσ a₁
    after it, with u       stays:  U_ℓ = U_{ℓ−1} + u
                           leaves: Y − H₀ = λσU₁ + (1 − λ) U_{ℓ−1} + u, where U₀ = 0, and in
                                   loop 1 no λσU₁: it is in u

λ s·m ⊙ a₁ of a row that stays is kept from loop 1 on, in those neurons whose weight isn't 0. A
second product in loop 1 would have cost F·D multiplications a row to save that traffic.

Legend: M tokens (or rows: their sorted order), D d_model, F d_hidden, N num_experts.
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
    kept_M,
    routed_MN,
    owner_F,
    gains_L,
    routed_MF,
    blend_MF,
    F,
    shared,
    NUM_EXPERTS: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Weigh a tile of a_ℓ for W_out and store it; keep the routed part of rows that stay.

    Args:
        a: hidden activations, float32.
        rows, tokens: where the tile's tokens are in sorted and in their own order.
        alive: which of them exist and run this loop.
        neurons: hidden neurons of the tile.
        NUM_EXPERTS: 0 without a width pathway.
    """
    inside = alive[:, None] & (neurons < F)[None, :]
    stays = tl.load(loop_count_M + tokens, mask=alive, other=0) > loop
    kept = tl.load(kept_M + tokens, mask=alive, other=0.0).to(tl.float32)
    gain = 1.0
    if gains_L is not None:
        gain = tl.load(gains_L + loop - 1).to(tl.float32)
    leaving = kept * gain
    if FIRST:
        leaving += (1.0 - kept) * shared
    weight = tl.where(stays, gain, leaving)
    weights = tl.broadcast_to(weight[:, None], a.shape)
    blend = weights * a
    if NUM_EXPERTS > 0:
        owner = tl.load(owner_F + neurons, mask=neurons < F, other=NUM_EXPERTS)
        owned = inside & (owner < NUM_EXPERTS)[None, :]
        shares = routed_MN + tokens[:, None] * NUM_EXPERTS + owner[None, :]
        share = tl.load(shares, mask=owned, other=0.0).to(tl.float32)
        chosen = owned & (share != 0)
        places = routed_MF + rows[:, None] * F + neurons[None, :]
        if FIRST:
            routed = share * a
            tl.store(places, routed.to(routed_MF.dtype.element_ty), mask=chosen & stays[:, None])
            blend += tl.where(stays[:, None], 0.0, routed)
        else:
            leaves = chosen & (stays == 0)[:, None]
            blend += tl.load(places, mask=leaves, other=0.0).to(tl.float32)
    blend = blend.to(blend_MF.dtype.element_ty)
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
    kept_M,
    first_MD,
    previous_MD,
    next_MD,
    output_MD,
    D,
    shared,
    FIRST: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Write U_ℓ of rows that stay, and Y − H₀ of rows that leave to the tokens' own places.

    Args:
        update: a tile of the product with W_out, float32.
        rows, tokens, alive: see `blend_and_store`.
        columns: the tile's place in D.
        first_MD, previous_MD, next_MD: U₁, U_{ℓ−1}, U_ℓ; the last is never one that is read.
        SHARED: σ ≠ 0.
    """
    kind = output_MD.dtype.element_ty
    # As a linear would have rounded it: then a row that leaves in loop 1 and one whose later
    # gains are zero, which has U₁ from memory, end in the same bits.
    update = update.to(kind).to(tl.float32)
    inside = alive[:, None] & (columns < D)[None, :]
    stays = inside & (tl.load(loop_count_M + tokens, mask=alive, other=0) > loop)[:, None]
    leaves = inside & (stays == 0)
    at_row = rows[:, None] * D + columns[None, :]
    total = update
    mixed = update
    if not FIRST:
        previous = tl.load(previous_MD + at_row, mask=inside, other=0.0).to(tl.float32)
        total = previous + update
        kept = tl.load(kept_M + tokens, mask=alive, other=0.0).to(tl.float32)
        base = tl.zeros_like(update)
        if SHARED:
            base = shared * tl.load(first_MD + at_row, mask=leaves, other=0.0).to(tl.float32)
        mixed = base + kept[:, None] * (previous - base) + update
    tl.store(next_MD + at_row, total.to(kind), mask=stays)
    at_token = tokens[:, None] * D + columns[None, :]
    tl.store(output_MD + at_token, mixed.to(kind), mask=leaves)
