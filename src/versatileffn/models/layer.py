"""A family's decoder layer whose FFN may be reused, run by the family's own forward pass."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.view import FFNView, unchanged
from versatileffn.layer import Reuse
from versatileffn.models.decisions import Decisions
from versatileffn.models.table import Family


def part(module: nn.Module, name: str) -> Any:
    """A module's part: among its modules, which is fast enough for each token, else an attribute.

    What wraps a module, as PEFT and torch.compile do, passes on attributes and holds no part.
    """
    found = module._modules.get(name)
    return getattr(module, name) if found is None else found


class LayerView:
    """A layer as its family's forward pass sees it: some parts are others, the rest is the layer's.

    Its modules are found as attributes of its own, which is faster than looking them up in the
    layer.

    Args:
        layer: is left as it is.
        parts: by the names under which the forward pass looks for them.
    """

    def __init__(self, layer: nn.Module, parts: dict[str, Callable[[Tensor], Tensor]]) -> None:
        self.__dict__.update(layer._modules)
        self.__dict__.update(parts)
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class HeldFFN(nn.Module):
    """Mixin for a family's mlp whose layer carries it out, part by part.

    vLLM knows a gated FFN by the source of its class's `forward`: it fuses gate and up into one
    map, splits that over ranks, and deletes the two. In this one it finds nothing to fuse.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The family's own."""
        return super().forward(*args, **kwargs)


class ReuseLayer(Reuse):
    """Mixin for a family's decoder layer.

    The family's modules stay where a dense checkpoint has them; its forward pass sees the identity
    in place of the FFN's norms, and the reuse in place of the FFN.

    Attributes:
        family: how the family calls its parts.
        own_forward: the family's, a plain function.
        held: what mlps of which class become.
    """

    family: ClassVar[Family]
    own_forward: ClassVar[Callable[..., Any]]
    held: ClassVar[dict[type[nn.Module], type[nn.Module]]]

    def __init__(self, config: Any, layer_idx: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, layer_idx, *args, **kwargs)
        family, mlp = self.family, getattr(self, self.family.mlp)
        lacking = [n for n in (*family.proj, family.act, family.down) if not hasattr(mlp, n)]
        if lacking:
            raise ConfigError(
                f"a {type(mlp).__name__} of {config.model_type} has no {lacking[0]}: only dense "
                "FFNs are reused, so give a model without experts of its own"
            )
        mlp.__class__ = self.held.get(type(mlp), type(mlp))
        beside = family.parallel or getattr(config, "use_parallel_residual", False)
        self.reads_stream = family.shared_norm is not None and beside
        self.norm_name = family.shared_norm if self.reads_stream else family.norm
        down = getattr(mlp, family.down)
        ffn = config.ffn().at_layer(layer_idx)
        self.add_reuse(ffn, down.out_features, down.in_features, self.ffn_view())
        self.set_tau(config.tau)

    def set_tau(self, tau: float) -> None:
        """Set τ wherever the controller has one."""
        for module in self.deciders("tau"):
            module.tau = tau

    def trains_choice(self) -> bool:
        """Whether what chooses experts, or depths, has weights that are trained."""
        chooser = self.controller if self.experts is None else self.experts.router
        return any(weight.requires_grad for weight in chooser.parameters())

    def outlets(self) -> dict[str, Tensor]:
        """The learned weights through which all of the reuse acts, by name; with these at 0 it is
        the dense FFN. None where gains are fixed."""
        if self.experts is not None:
            return {"experts.down_proj": self.experts.down_proj}
        gains = () if self.gains is None else self.gains.named_parameters()
        return {f"gains.{name}": gain for name, gain in gains}

    def ffn_view(self) -> FFNView:
        """The dense FFN as executors see it."""
        family = self.family
        modules: dict[str, Any] = self._modules
        mlp = part(self, family.mlp)
        return FFNView(
            norm=unchanged if self.norm_name is None else part(self, self.norm_name),
            proj=tuple([part(mlp, name) for name in family.proj]),
            act=part(mlp, family.act),
            down=part(mlp, family.down),
            gated=family.gated,
            post_norm=None if family.post_norm is None else part(self, family.post_norm),
            scale=1.0 if family.scale is None else getattr(self, family.scale),
            loop_weights=modules.get("loop_weights"),
        )

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        decisions: Decisions | None = None,
        **kwargs: Any,
    ) -> Any:
        """The family's own forward pass, its FFN reused.

        Args:
            hidden_states: the residual stream before the layer, [B, T, D].
            args, kwargs: of the family's forward pass.
            decisions: is handed what was decided and carried out; None if nobody asks.
        """

        def ffn(x: Tensor) -> Tensor:
            hidden = hidden_states if self.reads_stream else x
            if decisions is None:
                update = self.update(hidden, self.ffn_view())
            else:
                update, decided = self.reuse(hidden, self.ffn_view())
                decisions.add(decided)
            if self.family.dropout is None:
                return update
            share = getattr(getattr(self, self.family.mlp), self.family.dropout)
            return F.dropout(update, share, self.training)

        parts: dict[str, Callable[[Tensor], Tensor]] = {self.family.mlp: ffn}
        if self.norm_name is not None and not self.reads_stream:
            parts[self.norm_name] = unchanged
        if self.family.post_norm is not None:
            parts[self.family.post_norm] = unchanged
        return type(self).own_forward(LayerView(self, parts), hidden_states, *args, **kwargs)
