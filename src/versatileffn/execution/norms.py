"""The norm before the FFN as packed executors see it: its value, and its gradient by hand.

Legend: R rows (tokens), D d_model; `d_x` is the gradient of the loss in x.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from versatileffn.execution.plain import is_watched
from versatileffn.ffn.view import Norm

ROUNDS_FIRST = {
    "LlamaRMSNorm", "MistralRMSNorm", "MinistralRMSNorm", "Ministral3RMSNorm", "Qwen2RMSNorm",
    "Qwen3RMSNorm", "SmolLM3RMSNorm", "GraniteRMSNorm", "Phi3RMSNorm",
}  # fmt: skip
"""Transformers' names of one and the same norm; those of other families compute others."""
NormBackward = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""From d_x to the gradient of the state, [R, D], and of the norm's weights."""


@dataclass(frozen=True)
class RMSNorm:
    """x = w ⊙ h / √(mean h² + ε), computed in at least float32.

    Args:
        weight: w, [D].
        eps: ε.
        rounds_first: h is rounded to its own dtype before it meets w, as in Transformers; torch
            rounds once, at the end.
    """

    weight: Tensor
    eps: float
    rounds_first: bool

    @classmethod
    def of(cls, norm: Norm) -> "RMSNorm | None":
        """Recognize torch's RMSNorm and `ROUNDS_FIRST`, unless hooked; None for others."""
        if not isinstance(norm, nn.Module) or is_watched(norm):
            return None
        if type(norm) is nn.RMSNorm and norm.weight is not None and norm.eps is not None:
            return cls(norm.weight, norm.eps, rounds_first=False)
        if type(norm).__name__ in ROUNDS_FIRST:
            return cls(norm.weight, norm.variance_epsilon, rounds_first=True)  # type: ignore[arg-type]
        return None

    @property
    def weights(self) -> Sequence[Tensor]:
        """What it learns."""
        return (self.weight,)

    def with_weights(self, weights: Sequence[Tensor]) -> "RMSNorm":
        """The same norm with other weights."""
        return replace(self, weight=weights[0])

    def __call__(self, state_RD: Tensor) -> Tensor:
        """x, [R, D]."""
        if not self.rounds_first:
            return F.rms_norm(state_RD, self.weight.shape, self.weight, self.eps)
        return self.weight * self._unit(state_RD)[0].to(state_RD.dtype)

    def with_backward(self, state_RD: Tensor) -> tuple[Tensor, NormBackward]:
        """x, and the function that takes its gradient back."""
        unit_RD, scale_R1 = self._unit(state_RD)

        def backward(d_x_RD: Tensor) -> tuple[Tensor, list[Tensor]]:
            d_x_RD = d_x_RD.to(unit_RD.dtype)
            d_unit_RD = d_x_RD * self.weight
            d_weight_D = (d_x_RD * unit_RD).sum(0).to(self.weight.dtype)
            along_R1 = (d_unit_RD * unit_RD).mean(-1, keepdim=True)
            d_state_RD = torch.addcmul(d_unit_RD, unit_RD, along_R1, value=-1).mul_(scale_R1)
            return d_state_RD.to(state_RD.dtype), [d_weight_D]

        if self.rounds_first:
            return self.weight * unit_RD.to(state_RD.dtype), backward
        return (self.weight * unit_RD).to(state_RD.dtype), backward

    def _unit(self, state_RD: Tensor) -> tuple[Tensor, Tensor]:
        """h / √(mean h² + ε) and 1 / √(mean h² + ε), in at least float32."""
        wide_RD = state_RD.to(torch.promote_types(state_RD.dtype, torch.float32))
        scale_R1 = torch.rsqrt(wide_RD.square().mean(-1, keepdim=True) + self.eps)
        return wide_RD * scale_R1, scale_R1


@dataclass(frozen=True)
class AnyNorm:
    """Any other norm, by autograd.

    Args:
        module: the norm.
        weights: its parameters, in its own order. The module's own may be others by the time of
            the backward pass (`functional_call`).
        autocast: the dtype that autocast asked for; None where it is off.
    """

    module: nn.Module
    weights: Sequence[Tensor]
    autocast: torch.dtype | None

    @classmethod
    def of(cls, module: nn.Module, autocast: torch.dtype | None) -> "AnyNorm":
        """Wrap a norm with the parameters that it has now."""
        return cls(module, tuple(module.parameters()), autocast)

    def with_weights(self, weights: Sequence[Tensor]) -> "AnyNorm":
        """The same norm with other weights."""
        return replace(self, weights=tuple(weights))

    def __call__(self, state_RD: Tensor) -> Tensor:
        """x, [R, D]."""
        names = [name for name, _ in self.module.named_parameters()]
        weights = dict(zip(names, self.weights, strict=True))
        with autocast_as(state_RD, self.autocast):
            return functional_call(self.module, weights, state_RD)

    def with_backward(self, state_RD: Tensor) -> tuple[Tensor, NormBackward]:
        """x, and the function that takes its gradient back."""
        with torch.enable_grad():
            state_RD = state_RD.detach().requires_grad_()
            leaves = [w.detach().requires_grad_(w.requires_grad) for w in self.weights]
            x_RD = self.with_weights(leaves)(state_RD.view_as(state_RD))
        trained = [weight for weight in leaves if weight.requires_grad]

        def backward(d_x_RD: Tensor) -> tuple[Tensor, list[Tensor]]:
            d_state_RD, *grads = torch.autograd.grad(
                x_RD,
                [state_RD, *trained],
                d_x_RD.to(x_RD.dtype),
                allow_unused=True,
                materialize_grads=True,
            )
            by_weight = dict(zip(map(id, trained), grads, strict=True))
            return d_state_RD, [
                by_weight.get(id(weight), torch.zeros_like(weight)) for weight in leaves
            ]

        return x_RD.detach(), backward


def autocast_as(like: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast on the device of `like` to a dtype, or off for None.

    It keeps no copies: one that was cast without gradients would later stand where they are wanted.
    """
    return torch.autocast(like.device.type, dtype, enabled=dtype is not None, cache_enabled=False)
