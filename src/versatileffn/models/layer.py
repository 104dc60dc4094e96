"""What turns a family's decoder layer into one whose FFN is reused."""

from typing import Any

from torch import Tensor, nn

from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.controller import ReuseController
from versatileffn.ffn.dense import ACTIVATIONS
from versatileffn.ffn.gains import LoopGains
from versatileffn.ffn.kloop import k_loop
from versatileffn.ffn.moe import SparseExperts, moe
from versatileffn.ffn.versatile import versatile
from versatileffn.models.base import Decisions

MOE_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


class ReuseLayer(nn.Module):
    """Mixin for a decoder layer that owns `post_attention_layernorm` and `mlp`.

    The family's modules stay where a dense checkpoint has them. A variant adds at most one:
    `controller` (versatile), `experts` (moe), or `gains` (k-loop with learned gains).
    """

    post_attention_layernorm: Any
    mlp: Any

    def add_reuse(self, config: FFNConfig, d_model: int, d_hidden: int, activation: str) -> None:
        """Create what the variant needs beside the dense FFN.

        Args:
            config: the variant.
            d_model, d_hidden: D and F.
            activation: the family's name of φ, for real experts.
        """
        self.reuse = config
        self.controller: ReuseController | None = None
        self.experts: SparseExperts | None = None
        self.gains: LoopGains | None = None
        if config.variant == "versatile":
            self.controller = ReuseController(d_model, d_hidden, config)
        elif config.variant == "moe":
            self.experts = SparseExperts(
                d_model,
                config.num_experts,
                config.expert_size(d_hidden),
                config.top_k,
                MOE_ACTIVATIONS.get(activation, activation),
                gated=getattr(self.mlp, "gate_proj", None) is not None,
            )
        elif (
            config.variant == "k-loop" and config.reuse_gains == "learned" and config.num_loops > 1
        ):
            self.gains = LoopGains(config.num_loops)

    def apply_ffn(self, hidden: Tensor, decisions: Decisions | None = None) -> Tensor:
        """Norm, FFN and residual in the way the variant reuses them, [B, T, D] -> [B, T, D].

        Args:
            hidden: H, hidden states after attention.
            decisions: is handed what was decided and carried out; None if nobody asks.
        """
        norm, mlp = self.post_attention_layernorm, self.mlp
        if self.controller is not None:
            hidden, plan = versatile(hidden, norm, mlp, self.controller, self.reuse)
            if decisions is not None:
                decisions.add(plan.router_logits, plan)
            return hidden
        if self.experts is not None:
            hidden, router_logits = moe(hidden, norm, mlp, self.experts)
            if decisions is not None:
                decisions.add(router_logits)
            return hidden
        loops = self.reuse.num_loops if self.reuse.variant == "k-loop" else 1
        return k_loop(hidden, norm, mlp, loops, None if self.gains is None else self.gains())


def supports_activation(activation: str) -> bool:
    """Whether real experts can be built with this activation of Transformers'."""
    return MOE_ACTIVATIONS.get(activation, activation) in ACTIVATIONS
