"""What the reuse does, layer by layer: read from the plans of a forward pass, changing nothing."""

import re
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from versatileffn.ffn.losses import expert_statistics, loop_statistics

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def _key(layer: int, name: str) -> str:
    """The log's key of something in 0-based `layer`; people count layers from 1."""
    return f"layer_{layer + 1}/{name}"


def plan_statistics(plans: Any, num_experts: int) -> dict[str, Tensor]:
    """Statistics of each layer's decisions, averaged over the tokens of one forward pass.

    Args:
        plans: one ReusePlan per layer, with leading shape (B, T) or (M,).
        num_experts: N.

    Returns:
        `layer_1/mean_loops` (loops per token), `layer_1/loop_share_1` … (share of tokens),
        `layer_1/lambda` (weight of the width pathway), `layer_1/expert_load_0` … (share of
        assignments), each a scalar tensor.
    """
    values: dict[str, Tensor] = {}
    for layer, plan in enumerate(plans):
        loops = loop_statistics(plan)
        values[_key(layer, "mean_loops")] = loops.mean_loops
        for count, share in enumerate(loops.loop_share, start=1):
            values[_key(layer, f"loop_share_{count}")] = share
        values[_key(layer, "lambda")] = loops.mean_lam
        if plan.experts is not None:
            for expert, load in enumerate(expert_statistics(plan, num_experts)):
                values[_key(layer, f"expert_load_{expert}")] = load
    return values


def router_statistics(router_logits: Any, top_k: int) -> dict[str, Tensor]:
    """Expert loads of a mixture of real experts: each layer's share of assignments per expert.

    Args:
        router_logits: per layer (M, N) or (B, T, N).
        top_k: experts per token.
    """
    values: dict[str, Tensor] = {}
    for layer, logits in enumerate(router_logits):
        flat = logits.detach().flatten(0, -2)
        counts = torch.bincount(flat.topk(top_k, dim=-1).indices.flatten(), minlength=flat.shape[1])
        for expert, load in enumerate(counts / counts.sum()):
            values[_key(layer, f"expert_load_{expert}")] = load
    return values


def learned_gains(model: nn.Module) -> dict[str, float]:
    """Every reuse gain of `model`: `layer_1/width_gain` and `layer_1/loop_gain_2` (γ₂) onwards.

    Empty for a model with fixed gains.
    """
    values: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        match = _LAYER.search(name)
        if "gain" not in name or match is None:
            continue
        layer, leaf = int(match.group(1)), name.rpartition(".")[2]
        if leaf == "width_gain":
            values[_key(layer, leaf)] = parameter.item()
        else:
            for index, gain in enumerate(parameter.tolist(), start=2):
                values[_key(layer, f"{leaf.removesuffix('s')}_{index}")] = gain
    return values


class Telemetry:
    """Averages a step's statistics over its micro-batches.

    Args:
        model: the unwrapped model, whose config says what there is to read.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = getattr(model, "config", None)
        self.variant = getattr(config, "ffn_variant", "dense")
        self.num_experts = getattr(config, "num_experts", 0)
        self.top_k = getattr(config, "num_experts_per_tok", 0)
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._fed = 0

    def request(self) -> dict[str, bool]:
        """What to ask the model's forward pass for, as keyword arguments."""
        if self.variant == "versatile":
            return {"output_reuse_plans": True}
        return {"output_router_logits": True} if self.variant == "moe" else {}

    @torch.no_grad()
    def add(self, outputs: Any, input_ids: Tensor) -> None:
        """Read one micro-batch's outputs, and which tokens it was given."""
        self._fed = zlib.crc32(input_ids.cpu().numpy().tobytes(), self._fed)
        values: dict[str, Tensor] = {}
        if getattr(outputs, "reuse_plans", None) is not None:
            values.update(plan_statistics(outputs.reuse_plans, self.num_experts))
        elif self.variant == "moe" and outputs.router_logits is not None:
            values.update(router_statistics(outputs.router_logits, self.top_k))
        if getattr(outputs, "aux_loss", None) is not None:
            values["aux_loss"] = outputs.aux_loss
        for key, value in values.items():
            value = value.detach().float()
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._count += 1

    def take_fed(self) -> int:
        """CRC-32 of the token ids that this process was given in the step, for comparing runs."""
        fed, self._fed = self._fed, 0
        return fed

    def take(self) -> tuple[list[str], Tensor | None]:
        """Names and means since the last call (a vector), for a reduction over processes."""
        names, count = sorted(self._sums), self._count
        means = torch.stack([self._sums[name] for name in names]) / count if names else None
        self._sums, self._count = {}, 0
        return names, means
