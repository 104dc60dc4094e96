"""What else a dense FFN's place could hold: k loops for every token, or a mixture of experts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.controller import at_least_float32, select_experts
from versatileffn.ffn.kloop import k_loop
from versatileffn.ffn.moe import MoEFFN
from versatileffn.ffn.versatile import VersatileFFN


class GroupedExperts(nn.Module):
    """The MoE baseline with Transformers' own experts, which run torch's grouped product.

    Args:
        moe: the layer whose weights are taken.
    """

    def __init__(self, moe: MoEFFN) -> None:
        super().__init__()
        ours = moe.experts
        config: Any = OlmoeConfig(
            hidden_size=ours.down_proj.shape[1],
            intermediate_size=ours.down_proj.shape[2],
            num_experts=ours.num_experts,
            hidden_act="silu",
        )
        config._experts_implementation = "grouped_mm"
        self.moe, self.experts = moe, OlmoeExperts(config)
        self.experts.gate_up_proj = ours.gate_up_proj
        self.experts.down_proj = ours.down_proj

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, D] -> [M, D]."""
        x = self.moe.norm(hidden)
        logits = at_least_float32(self.moe.experts.router(x))
        gates, experts = select_experts(logits, self.moe.experts.top_k)
        return hidden + self.moe.mlp(x) + self.experts(x, experts, gates.to(x.dtype))


def alternatives(layer: VersatileFFN, hidden_MD: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The baselines on the layer's own norm and FFN; real experts are new.

    Args:
        layer: an inference layer of any dtype.
        hidden_MD: H, [M, D].

    Returns:
        `2-loop`, `4-loop`, `moe` and `moe-transformers` (the same weights in both).
    """
    down_DF = layer.mlp.down_proj.weight
    config = FFNConfig(variant="moe")
    d_model, d_hidden = down_DF.shape
    moe = MoEFFN(d_model, d_hidden, config).to(down_DF).requires_grad_(False)
    moe.norm, moe.mlp = layer.norm, layer.mlp
    grouped = GroupedExperts(moe)
    return {
        "2-loop": lambda: k_loop(hidden_MD, layer.norm, layer.mlp, 2),
        "4-loop": lambda: k_loop(hidden_MD, layer.norm, layer.mlp, 4),
        "moe": lambda: moe(hidden_MD).hidden,
        "moe-transformers": lambda: grouped(hidden_MD),
    }
