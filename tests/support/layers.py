"""Small layers of every form, and the same weights as `naive.py` reads them."""

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from versatileffn.analysis import truth
from versatileffn.ffn import naive
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import KLoop, Versatile
from versatileffn.ffn.view import FFNView, unchanged
from versatileffn.layer import Reuse, VersatileFFN


@dataclass(frozen=True)
class Form:
    """What a feed-forward network of a family may look like."""

    norm: str | None = "rms"
    gated: bool = True
    fused: bool = False
    bias: bool = False
    act: object = F.silu
    post_norm: bool = False
    scale: float = 1.0


FORMS = {
    "swiglu": Form(),
    "fused": Form(fused=True),
    "fused-biases": Form(fused=True, bias=True),
    "plain-biases": Form(gated=False, act=F.gelu, bias=True),
    "layer-norm": Form(norm="layer", gated=False, act=F.gelu, bias=True),
    "scale": Form(scale=0.3, bias=True),
    "post-norm": Form(norm=None, post_norm=True),
    "sandwich": Form(post_norm=True, fused=True, scale=0.7),
}


class AnyLayer(Reuse):
    """A reused FFN of any form, with the residual around it."""

    def __init__(self, d_model: int, d_hidden: int, config: FFNConfig, form: Form) -> None:
        super().__init__()
        self.config, self.form = config, form
        norms = {"rms": nn.RMSNorm(d_model, eps=1e-6), "layer": nn.LayerNorm(d_model, eps=1e-6)}
        self.norm = norms.get(form.norm)
        widths = [2 * d_hidden] if form.fused else [d_hidden] * (1 + form.gated)
        self.proj = nn.ModuleList(nn.Linear(d_model, w, bias=form.bias) for w in widths)
        self.down = nn.Linear(d_hidden, d_model, bias=form.bias)
        self.post_norm = nn.RMSNorm(d_model, eps=1e-6) if form.post_norm else None
        self.add_reuse(config, d_model, d_hidden, self.view())

    def view(self) -> FFNView:
        form, loop_weights = self.form, getattr(self, "loop_weights", None)
        return FFNView(
            self.norm or unchanged, tuple(self.proj), form.act, self.down, form.gated,
            self.post_norm, form.scale, loop_weights,
        )  # fmt: skip

    def forward(self, hidden, plan=None):
        update, _ = self.reuse(hidden, self.view(), plan)
        return hidden + self.form.scale * update


def fill(layer, dtype, seed, gains_at):
    """Weights large enough that every term matters; learned gains set off zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = layer.to(dtype)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator).to(dtype) * 0.3)
            if "norm.weight" in name:
                weight += 1
            if "gain" in name and gains_at is not None:
                weight.fill_(gains_at)
    return layer


def make_layer(
    d_model=16, d_hidden=32, dtype=torch.float64, seed=0, gains_at=None, execution="auto",
    **settings,
) -> VersatileFFN:  # fmt: skip
    layer = fill(VersatileFFN(d_model, d_hidden, **settings), dtype, seed, gains_at)
    layer.execution = execution
    return layer


def make_any(
    form: str, config: FFNConfig, d_model=16, d_hidden=32, dtype=torch.float64, gains_at=None
) -> AnyLayer:
    return fill(AnyLayer(d_model, d_hidden, config, FORMS[form]), dtype, 0, gains_at)


def view_of(layer: Reuse) -> FFNView:
    if isinstance(layer, VersatileFFN):
        return layer.mlp.view(layer.norm, layer.loop_weights)
    return layer.view()


def decide(layer: Reuse, hidden, noise=None):
    """The layer's plan, for given Gumbel noise where its controller draws some."""
    view, controller = view_of(layer), layer.controller
    if noise is None:
        return layer.decide(hidden, view)
    seen = view.norm(hidden) if getattr(layer.config, "normed_controller", False) else hidden
    plan = controller(seen, gumbel_noise=noise)
    return plan if layer.gains is None else layer.gains(plan)


def execute_with(executor, layer: Reuse, hidden, plan):
    """Y by one executor."""
    view = view_of(layer)
    return hidden + view.scale * executor(hidden, view, plan.flatten().weights())


def make_hidden(*shape, dtype=torch.float64, seed=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def gumbel(hidden, max_loops, seed=2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(*hidden.shape[:-1], max_loops, generator=generator, dtype=torch.float64)
    return -(-uniform.clamp_min(1e-12).log()).log().to(hidden.dtype)


def as_naive(layer: Reuse) -> naive.NaiveFFN:
    """The same layer for `naive.py`, its norms written out, too."""
    view = view_of(layer)
    return dataclasses.replace(
        truth.as_naive(layer, view),
        own_norm=None,
        own_post_norm=None,
        norm_D=getattr(view.norm, "weight", None),
        norm_bias_D=getattr(view.norm, "bias", None),
        post_norm_D=None if view.post_norm is None else view.post_norm.weight,
        eps=getattr(view.norm, "eps", 1e-6),
    )


PLANS = {
    "paper": Versatile(),
    "average": Versatile(fusion="average"),
    "width": Versatile(fusion="width"),
    "depth": Versatile(fusion="depth"),
    "learned": Versatile(reuse_gains="learned"),
    "soft": Versatile(loop_mix="soft", reuse_gains="learned"),
    "token-choice": Versatile(fusion="depth", controller="token-choice"),
    "token-choice-learned": Versatile(
        fusion="depth", controller="token-choice", reuse_gains="learned"
    ),
    "k-loop": KLoop(3),
    "k-loop-learned": KLoop(3, reuse_gains="learned"),
    "dense": FFNConfig.from_dict({"variant": "dense"}),
    "loop-weights": Versatile(loop_rank=2, reuse_gains="learned"),
    "k-loop-weights": KLoop(3, loop_rank=2),
}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the error over that of the truth; infinite where either isn't finite.

    In `max` a NaN would hide, and a truth that is exactly 0 would make one.
    """
    actual, expected = actual.double().cpu(), expected.double().cpu()
    error, size = (actual - expected).norm().item(), expected.norm().item()
    if not math.isfinite(error):
        return math.inf
    return error / size if size else (math.inf if error else 0.0)
