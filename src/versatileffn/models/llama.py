"""The Llama family: the paper's architecture."""

from typing import Any, Self

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
)

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.values import check_value
from versatileffn.models.base import Decisions, ReuseModelMixin
from versatileffn.models.causal_lm import ReuseCausalLMMixin, ReuseInitMixin
from versatileffn.models.fields import ReuseFields, check_names, reuse_fields
from versatileffn.models.layer import ReuseLayer, supports_activation


class VersatileLlamaConfig(ReuseFields, LlamaConfig):
    """`LlamaConfig` with the fields of `FFNConfig`.

    Every variant, dense included, is this one class, so all of them save and load alike. Trainers
    take `router_aux_loss_coef` for the sign that a model has a router; without one it is 0.

    Raises:
        ConfigError: a reuse field is unknown, out of range, or doesn't fit `intermediate_size`.
    """

    model_type = "versatile_llama"
    # A rank that holds some neurons of the FFN can't know the other ranks' experts: with the
    # inherited entries for `mlp`, tensor parallelism would give wrong logits without an error.
    base_model_tp_plan = {  # noqa: RUF012
        name: plan for name, plan in LlamaConfig.base_model_tp_plan.items() if ".mlp." not in name
    }

    def __post_init__(self, **kwargs: Any) -> None:
        check_names(kwargs)
        super().__post_init__(**kwargs)
        check_value("output_router_logits", self.output_router_logits, bool)
        ffn = self.ffn()
        ffn.expert_size(self.intermediate_size)
        if not ffn.has_router:
            self.router_aux_loss_coef = 0.0
        if ffn.variant == "moe" and not supports_activation(self.hidden_act):
            raise ConfigError(
                f"hidden_act={self.hidden_act!r} has no implementation for real experts: "
                "use silu, gelu or relu"
            )

    @classmethod
    def from_ffn(cls, llama: LlamaConfig, ffn: FFNConfig) -> Self:
        """A dense Llama's config with the reuse of `ffn`."""
        kept = llama.to_dict()
        for name in ("model_type", "architectures", "transformers_version", "auto_map"):
            kept.pop(name, None)
        return cls(**(kept | reuse_fields(ffn)))


class VersatileLlamaDecoderLayer(ReuseLayer, LlamaDecoderLayer):
    """Llama's layer: attention as it is (Eq. 1), the FFN reused."""

    def __init__(self, config: VersatileLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.add_reuse(
            config.ffn(), config.hidden_size, config.intermediate_size, config.hidden_act
        )

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, decisions: Decisions | None = None, **kwargs: Any
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; see `ReuseLayer.apply_ffn` for `decisions`."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        return self.apply_ffn(hidden_states + attended, decisions)


class VersatileLlamaPreTrainedModel(ReuseInitMixin, LlamaPreTrainedModel):
    """Initialization, loading, and what can be recorded.

    Decisions need more than 8 bits: a checkpoint that is loaded in half precision, or quantized,
    keeps the few weights that make them, and the gains, in float32.
    """

    config: VersatileLlamaConfig
    config_class = VersatileLlamaConfig
    _no_split_modules = ["VersatileLlamaDecoderLayer"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = [".*controller", ".*experts.router", ".*gains"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": LlamaDecoderLayer,
        "attentions": LlamaAttention,
    }


class VersatileLlamaModel(ReuseModelMixin, VersatileLlamaPreTrainedModel, LlamaModel):
    """Llama's base model with reused FFNs."""

    def __init__(self, config: VersatileLlamaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            VersatileLlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.post_init()


class VersatileLlamaForCausalLM(
    ReuseCausalLMMixin, VersatileLlamaPreTrainedModel, LlamaForCausalLM
):
    """Llama for causal language modelling with reused FFNs: generation is Transformers' own."""

    def __init__(self, config: VersatileLlamaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = VersatileLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        config.ffn().warn_unused_neurons(config.intermediate_size)
        # On a CPU real experts split their rows by counts that a graph can't know.
        self._can_compile_fullgraph = config.ffn_variant != "moe"
        self.post_init()


AutoConfig.register("versatile_llama", VersatileLlamaConfig)
AutoModel.register(VersatileLlamaConfig, VersatileLlamaModel)
AutoModelForCausalLM.register(VersatileLlamaConfig, VersatileLlamaForCausalLM)
