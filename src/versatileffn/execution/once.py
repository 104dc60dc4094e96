"""One loop for every token, known beforehand: the dense FFN with a weight for each neuron.

Nothing is ordered, counted or kept, and no plan is made that nobody looks at. Decoding one token,
what a layer does beside its matrix products is what the clock sees.

Legend: M tokens (or any leading shape), D d_model, F d_hidden.
"""

from typing import Protocol

from torch import Tensor

from versatileffn.ffn.view import FFNView


class Weigher(Protocol):
    """An `OneLoop`, or what the compiled kernel has in its place."""

    def weigh(self, a_MF: Tensor) -> Tensor:
        """[(1 − λ) + λσ + λ·s·m] ⊙ a₁, [M, F]; may write into a₁."""
        ...


def run_once(x_MD: Tensor, view: FFNView, weights: Weigher) -> Tensor:
    """Run the FFN once. Only without gradients.

    Args:
        x_MD: norm(H), [M, D].
        view: an FFN without a post-norm; its modules are called.
        weights: of the same M tokens.

    Returns:
        (Y − H)/r, [M, D].
    """
    projected = [linear(x_MD) for linear in view.proj]
    if view.gated:
        gate_MF, up_MF = projected if len(projected) == 2 else projected[0].chunk(2, dim=-1)
        a_MF = view.act(gate_MF) * up_MF  # memory of its own, which no hook has seen
    else:
        a_MF = view.act(projected[0]).clone()  # φ may return what it was given, or a view of it
    out_MD: Tensor = view.down(weights.weigh(a_MF))
    return out_MD
