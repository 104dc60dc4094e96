"""Parameters, and FFN FLOPs per token, counted on a model without memory for its weights.

One token goes through each part of each FFN under torch's FLOP counter, whatever the family calls
these parts; loops and pathways are then put together as Table 2 of arXiv 2512.14531 does. 2 FLOPs
per multiply-add. Norms, activations, gates and the mixing of pathways are not counted, and neither
are routers and loop predictors: the paper leaves them out too, and `controller` has them by itself.
What a real forward pass executes is measured in `executed.py`, not here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from versatileffn.analysis.executed import FlopCounter
from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Dense, MoE, Versatile
from versatileffn.models.family import is_reuse, reuse_config
from versatileffn.models.weights import skeleton

Accounting = Literal["paper", "ours"]


def ffn_of(config: Any) -> FFNConfig:
    """The FFN that a model's config describes; one of Transformers' own is dense."""
    ffn: FFNConfig = config.ffn() if is_reuse(config) else Dense()
    return ffn


@dataclass(frozen=True)
class ModelCost:
    """What a model costs; FLOPs are of all its FFNs together, for one token.

    Args:
        ffn: the variant.
        parameters: of the whole model; tied embeddings count once. Source: Table 2.
        once: FLOPs of the first loop, the dense FFN.
        again: FLOPs of each further loop, of the layers that are reused.
        experts: FLOPs of the K experts of a token: real ones run; virtual ones the paper counts as
            if they did.
        width_down: FLOPs of the width pathway's own W_out, which it needs where a post-norm follows
            or loops differ; elsewhere 0.
        controller: FLOPs of routers and loop predictors, in no other number.
    """

    ffn: FFNConfig
    parameters: int
    once: int
    again: int
    experts: int
    width_down: int
    controller: int

    @property
    def needs_loops(self) -> bool:
        """Whether the FLOPs depend on the loops that tokens take."""
        ffn = self.ffn
        return isinstance(ffn, Versatile) and ffn.uses_depth and ffn.loop_mix == "hard"

    def needs_share(self, accounting: Accounting = "ours") -> bool:
        """Whether they depend on the share of tokens that skip the width pathway, too."""
        skipped = getattr(self.ffn, "fusion", None) == "difficulty"  # there λ may be 0
        return self.needs_loops and skipped and (accounting == "paper" or self.width_down > 0)

    def ffn_flops(
        self,
        mean_loops: float | None = None,
        share_below_max: float | None = None,
        accounting: Accounting = "ours",
    ) -> float:
        """Matrix-product FLOPs of all FFNs for one token at inference.

        Source: Table 2, second number of each pair: Base; k-Loop = k·Base; MoE = Base + K experts;
        for the reuse layer `paper` is Base·N_mean + (MoE − Base)·P. `ours` leaves the width pathway
        out where it costs no product of its own (its hidden activations are those of loop 1).

        Args:
            mean_loops: N_mean, mean loops per token over all layers that are reused, 1 to L; where
                tokens decide.
            share_below_max: P, share of tokens that run fewer than L loops, 0 to 1; where those
                that don't skip the width pathway, and it counts.
            accounting: `paper` adds the width pathway as if its experts ran; `ours` doesn't.

        Raises:
            ConfigError: a measured value that is needed is missing or out of range.
        """
        if accounting not in ("paper", "ours"):
            raise ConfigError(f"accounting={accounting!r} is unknown: choose 'paper' or 'ours'")
        flops = self.once + self.again * (self._loops(mean_loops) - 1)
        if isinstance(self.ffn, MoE):
            return flops + self.experts
        width = self.experts if accounting == "paper" else self.width_down
        return flops + (width * self._share(share_below_max, accounting) if width else 0)

    def _loops(self, mean_loops: float | None) -> float:
        most = self.ffn.loops
        if not self.needs_loops:  # with a soft mix every loop has a weight, so every loop runs
            return float(most)
        if mean_loops is None:
            raise ConfigError(
                "mean_loops is missing: a versatile model's FLOPs depend on the loops that its "
                "tokens take; measure them with `versatileffn.evaluation.loops.layer_use`"
            )
        if not 1 <= mean_loops <= most:
            raise ConfigError(f"mean_loops={mean_loops!r} must lie in 1 to max_loops={most}")
        return mean_loops

    def _share(self, share: float | None, accounting: Accounting) -> float:
        if not self.needs_share(accounting):
            return 1.0  # λ is never exactly zero
        if share is None or not 0 <= share <= 1:
            raise ConfigError(
                f"share_below_max={share!r} must be a share from 0 to 1: the width pathway counts "
                "only for tokens that run fewer than max_loops loops"
            )
        return share


def model_cost(config: Any) -> ModelCost:
    """Count a model of any family and variant.

    Args:
        config: a reuse config, or a dense one of a known family.

    Raises:
        CheckpointError: the family is unknown.
    """
    ffn = ffn_of(config)
    model: Any = skeleton(config if is_reuse(config) else reuse_config(config, ffn)).eval()
    layers = [_layer_cost(layer, config.hidden_size) for layer in model.reuse_layers()]
    once, again, experts, width_down, controller = map(sum, zip(*layers, strict=True))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelCost(ffn, parameters, once, again, experts, width_down, controller)


def _layer_cost(layer: Any, d_model: int) -> tuple[int, int, int, int, int]:
    """`once`, `again`, `experts`, `width_down` and `controller` of one layer."""
    token = torch.empty(1, 1, d_model, device="meta")
    view, ffn = layer.ffn_view(), layer.reuse_config

    def loop(number: int) -> int:
        return _counted(lambda: view.update(view.hidden(token, number), number))

    once = loop(0)
    again = loop(1) if ffn.loops > 1 else 0
    experts = width_down = controller = 0
    if layer.experts is not None:
        each = layer.experts.gate_up_proj[0].numel() + layer.experts.down_proj[0].numel()
        experts = 2 * layer.experts.top_k * each
        controller = _counted(lambda: layer.experts.router(token))
    elif isinstance(ffn, Versatile):
        decide = with_zeros(layer.controller)  # someone's own may look at values
        controller = _counted(lambda: decide(torch.zeros(1, 1, d_model)))
        if ffn.uses_width:
            d_hidden = view.down.in_features
            experts = once * ffn.top_k * ffn.expert_size(d_hidden) // d_hidden
            width_down = 0 if view.merges else 2 * view.down.weight.numel()
    return once, again, experts, width_down, controller


@torch.no_grad()
def with_zeros(module: Any) -> Any:
    """The same module with memory, all its values 0."""
    module = module.to(torch.float32).to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.zero_()
    return module


@torch.no_grad()
def _counted(run: Callable[[], Any]) -> int:
    """FLOPs that torch counts while something runs."""
    with FlopCounter() as counter:
        run()
    return counter.total
