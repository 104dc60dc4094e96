"""The packed passes for an FFN that doesn't merge: one with a norm after W_out, or whose weights
differ by loop.

Every loop then has a down-projection of its own, and the width pathway pays one more, for those
tokens whose λs isn't 0:

    (Y − H₀)/r = λσU₁ + λs·post(W_out(m ⊙ a₁)) + (1 − λ) U_ℓ̂

The forward pass calls the view; the backward pass runs a token's ℓ̂ loops again, one after another,
and lets autograd differentiate each. So training comes here also where φ has weights of its own.
Only states are saved, H₀ and U₁ … U_L.

Legend: M tokens, D d_model, F d_hidden, L max_loops, R tokens still running; H_ℓ = H₀ + r·U_ℓ;
`d_x` is the gradient of the loss in x.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from versatileffn.execution.gradients import Gradients, Saved, Wanted, row_dots
from versatileffn.execution.layer import autocast_dtype
from versatileffn.execution.masked import width_update
from versatileffn.execution.norms import autocast_as
from versatileffn.execution.order import Count, run_in_order
from versatileffn.execution.packed import before_last, check_hard, gain_of
from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView


def run_stepwise(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Tensor:
    """Carry out a hard plan without gradients. Source: Algorithm 2.

    Args:
        hidden_MD: H, hidden states after attention, [M, D].
        view: the FFN; its modules are called.
        weights: of the same M tokens.

    Returns:
        (Y − H)/r, [M, D].

    Raises:
        PlanError: the plan is soft, so no token may stop early.
    """
    check_hard(weights)
    return run_in_order(hidden_MD, weights, partial(StepwiseForward, view))


class StepwiseForward:
    """One forward pass over tokens that are in order.

    Args:
        view: the FFN.
        weights, count, all_loops: see `PackedForward`.

    Attributes:
        totals: after the call, U_1 … U_L, of all tokens or (without `all_loops`) of those still
            running.
        projected: empty: no activations are kept.
    """

    projected: Sequence[Tensor] = ()

    def __init__(
        self, view: FFNView, weights: TokenWeights, count: Count, all_loops: bool = False
    ) -> None:
        self.view, self.weights, self.count, self.all_loops = view, weights, count, all_loops
        self.totals: list[Tensor] = []

    def __call__(self, start_MD: Tensor) -> Tensor:
        """(Y − H₀)/r, [M, D], from H₀."""
        view, weights = self.view, self.weights
        running, output_MD = len(start_MD), torch.empty_like(start_MD)
        first_MD = total_MD = width_MD = None
        for loop in range(weights.max_loops):
            a_MF = view.hidden(
                start_MD if total_MD is None else view.state(start_MD[: len(total_MD)], total_MD),
                loop,
            )
            step_MD = view.update(a_MF, loop).to(start_MD.dtype)
            if first_MD is None:
                first_MD, width_MD = step_MD, self._width(a_MF)
            gain = gain_of(weights, loop)
            if gain is not None:
                step_MD = gain.to(step_MD.dtype) * step_MD
            total_MD = step_MD if total_MD is None else total_MD + step_MD
            staying = self.count()[loop + 1]
            leave = slice(staying, running)
            kept_R1 = weights.kept_M1[leave].to(total_MD.dtype)
            left_RD = before_last(first_MD[leave], total_MD[leave], kept_R1, weights.shared)
            output_MD[leave] = left_RD if width_MD is None else left_RD + width_MD[leave]
            if not self.all_loops:
                total_MD = total_MD[:staying]
                if not staying:
                    break
            self.totals.append(total_MD)
            running = staying
        return output_MD

    def _width(self, a_MF: Tensor) -> Tensor | None:
        """The experts' part of the width pathway, for tokens that have one, [M, D]."""
        routed_M1, view = self.weights.routed_M1, self.view
        if routed_M1 is None:
            return None
        tokens = routed_M1[:, 0].nonzero()[:, 0]
        biased = view.post_norm is None and view.down_bias is not None  # also where s = 0
        if biased or len(tokens) == len(a_MF):
            return width_update(view, self.weights, a_MF)
        if not len(tokens):
            return None
        part_RD = width_update(view, self.weights.take(tokens), a_MF[tokens])
        assert part_RD is not None
        return part_RD.new_zeros(len(a_MF), part_RD.shape[1]).index_copy_(0, tokens, part_RD)


@dataclass(frozen=True)
class SteppedLayer:
    """What a backward pass by autograd needs of an FFN.

    Args:
        view: the FFN, its parts modules.
        step: calls it.
        tensors: its parameters, in the order of `step.named_parameters()`. The modules' own may be
            others by the time of the backward pass (`functional_call`).
        autocast: the dtype that autocast asked for; None where it is off.
    """

    view: FFNView
    step: "Step"
    tensors: Sequence[Tensor]
    autocast: torch.dtype | None

    @classmethod
    def of(cls, view: FFNView, like: Tensor) -> Self:
        """Read a view for which `why_called` has no reason; `like` are hidden states."""
        step = Step(view)
        return cls(view, step, list(step.parameters()), autocast_dtype(like))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """The same layer with the tensors that autograd has handed back."""
        return replace(self, tensors=tensors)


class Step(nn.Module):
    """One loop of a view as a module, so that its parameters can be exchanged.

    Args:
        view: the FFN.
    """

    def __init__(self, view: FFNView) -> None:
        super().__init__()
        self.view = view
        parts = (view.norm, *view.linears, view.act, view.post_norm, view.loop_weights)
        self.parts = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))

    def forward(
        self, state_RD: Tensor, loop: int, weights: TokenWeights | None
    ) -> tuple[Tensor, Tensor | None]:
        """W_out's part of U in this loop, and with weights the experts', each [R, D]."""
        a_RF = self.view.hidden(state_RD, loop)
        width_RD = None if weights is None else width_update(self.view, weights, a_RF)
        return self.view.update(a_RF, loop), width_RD


class StepwiseBackward:
    """One backward pass: loops in reverse, over the tokens that ran them.

    Args:
        layer: as the forward pass read it.
        weights: of the tokens.
        active: tokens that run loop 1, 2, … L, then 0.
        saved: what the forward pass kept.
        d_output_MD: the gradient of the updates, G.
    """

    def __init__(
        self,
        layer: SteppedLayer,
        weights: TokenWeights,
        active: list[int],
        saved: Saved,
        d_output_MD: Tensor,
    ) -> None:
        self.layer, self.active, self.saved, self.d_output_MD = layer, active, saved, d_output_MD
        leaves = {
            name: tensor.detach().requires_grad_()
            for name in ("kept_M1", "shared_M1", "routed_M1", "gates_MN")
            if (tensor := getattr(weights, name)) is not None
        }
        self.weights, self.leaves = replace(weights, **leaves), leaves
        self.d_start_MD = torch.zeros_like(d_output_MD)
        self.d_by_token: dict[str, Tensor] = {}
        gains_L = weights.gains_L
        self.d_gains_L = None if gains_L is None else torch.zeros_like(gains_L)
        self.d_kept_M = torch.zeros_like(weights.kept_M1[:, 0])

    def __call__(self, wanted: Wanted) -> Gradients:
        """Go through the loops in reverse."""
        tensors = [
            tensor.detach().requires_grad_(want)
            for tensor, want in zip(self.layer.tensors, wanted.layer, strict=True)
        ]
        trained = [tensor for tensor in tensors if tensor.requires_grad]
        totals = [torch.zeros_like(tensor) for tensor in trained]
        d_next_RD = self.d_output_MD[:0]
        for loop in reversed(range(len(self.active) - 1)):
            if self.active[loop] or loop == 0:
                d_next_RD = self._loop(loop, d_next_RD, tensors, trained, totals)
        found = iter(totals)
        d_kept_M1 = self.d_kept_M[:, None]
        if "kept_M1" in self.d_by_token:
            d_kept_M1 = d_kept_M1 + self.d_by_token["kept_M1"]
        return Gradients(
            hidden=self.d_start_MD,
            probs=self._probs_gradient() if wanted.probs else None,
            kept=d_kept_M1,
            shared=self.d_by_token.get("shared_M1"),
            routed=self.d_by_token.get("routed_M1"),
            gates=self.d_by_token.get("gates_MN"),
            gains=self.d_gains_L,
            layer=[next(found) if want else None for want in wanted.layer],
        )

    def _loop(
        self,
        loop: int,
        d_next_RD: Tensor,
        tensors: list[Tensor],
        trained: list[Tensor],
        totals: list[Tensor],
    ) -> Tensor:
        """From d_U_ℓ of tokens that go on to d_U_{ℓ−1} of all that ran loop ℓ; adds to `totals`."""
        running, staying = self.active[loop], self.active[loop + 1]
        leave, G = slice(staying, running), self.d_output_MD
        start_RD, view = self.saved.start_MD[:running], self.layer.view
        before_RD = self.saved.totals[loop - 1][:running] if loop else torch.zeros_like(start_RD)
        by_token = list(self.leaves) if loop == 0 else []
        with torch.enable_grad(), autocast_as(start_RD, self.layer.autocast):
            state_RD = view.state(start_RD, before_RD).detach().requires_grad_()
            names = [name for name, _ in self.layer.step.named_parameters()]
            # Not the leaf itself, on which module trackers (torch's FLOP counter) set hooks that
            # only a whole backward pass allows.
            step_RD, width_RD = functional_call(
                self.layer.step, dict(zip(names, tensors, strict=True)),
                (state_RD.view_as(state_RD), loop, self.weights if loop == 0 else None),
            )  # fmt: skip
        kept_R1 = self.weights.kept_M1[leave].detach().to(G.dtype)
        d_total_RD = torch.cat([d_next_RD, kept_R1 * G[leave]])
        gain, plain_RD = gain_of(self.weights, loop), step_RD.detach().to(G.dtype)
        d_step_RD = d_total_RD if gain is None else gain.to(G.dtype) * d_total_RD
        if self.d_gains_L is not None:
            self.d_gains_L[loop] = row_dots(d_total_RD, plain_RD).sum()
        after_RD = before_RD[leave] + (
            plain_RD[leave] if gain is None else gain.to(G.dtype) * plain_RD[leave]
        )
        self.d_kept_M[leave] = row_dots(G[leave], after_RD).to(self.d_kept_M.dtype)
        if loop == 0 and self.weights.shared_M1 is not None:
            d_step_RD = d_step_RD + self.weights.shared_M1.detach().to(G.dtype) * G
        outputs, d_outputs = [step_RD], [d_step_RD.to(step_RD.dtype)]
        if width_RD is not None:
            outputs, d_outputs = [*outputs, width_RD], [*d_outputs, G.to(width_RD.dtype)]
        d_state_RD, *grads = torch.autograd.grad(
            outputs, [state_RD, *trained, *(self.leaves[name] for name in by_token)], d_outputs,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        for total, grad in zip(totals, grads[: len(totals)], strict=True):
            total += grad
        self.d_by_token |= dict(zip(by_token, grads[len(totals) :], strict=True))
        if "shared_M1" in by_token:
            dots_M1 = row_dots(G, plain_RD)[:, None]
            self.d_by_token["shared_M1"] += dots_M1.to(self.d_kept_M.dtype)
        self.d_start_MD[:running] += d_state_RD
        return torch.add(d_total_RD, d_state_RD, alpha=view.scale)

    def _probs_gradient(self) -> Tensor:
        """Gradient of p: (1 − λ) ⟨G, U_ℓ⟩ for every loop, [M, L]."""
        dots = [row_dots(self.d_output_MD, total_MD) for total_MD in self.saved.totals]
        kept_M1 = self.weights.kept_M1.detach()
        return kept_M1 * torch.stack(dots, dim=-1).to(kept_M1.dtype)
