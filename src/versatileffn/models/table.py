"""The families of dense models whose FFN can be reused: a row each.

To add one, add its row to `FAMILIES`; docs/families.md says what the columns mean.
"""

from dataclasses import dataclass
from typing import Any

from versatileffn.errors import CheckpointError

OURS = "versatile_"
"""What our model types begin with; the dense model's type follows."""


@dataclass(frozen=True)
class Family:
    """What a family of Transformers calls the parts that the reuse replaces.

        H + r·post(mlp(norm(H)))

    Args:
        prefix: what the names of its classes begin with.
        proj: W_proj, linear maps of the mlp: gate and up; or both fused; or up alone.
        gated: φ is act(gate)·up.
        act, down: φ and W_out in the mlp.
        mlp: the mlp in the layer.
        norm: the norm before the mlp; None where there is none.
        post_norm: the norm after the mlp, before the residual stream; None where there is none.
        shared_norm: the norm before the mlp where it stands beside attention, on one norm with it.
        parallel: mlp beside attention in every model of the family; otherwise a model is where its
            config has `use_parallel_residual`.
        scale: r, in the layer; None where there is none.
        dropout: in the mlp, the share of its output that training drops; None where there is none.
        module: of Transformers, where it isn't called like the model type.
        layer, base, config: what the names of these classes end with.
    """

    prefix: str
    proj: tuple[str, ...] = ("gate_proj", "up_proj")
    gated: bool = True
    act: str = "act_fn"
    down: str = "down_proj"
    mlp: str = "mlp"
    norm: str | None = "post_attention_layernorm"
    post_norm: str | None = None
    shared_norm: str | None = None
    parallel: bool = False
    scale: str | None = None
    dropout: str | None = None
    module: str | None = None
    layer: str = "DecoderLayer"
    base: str = "Model"
    config: str = "Config"


UP: dict[str, Any] = {"proj": ("up_proj",), "gated": False}
FUSED: dict[str, Any] = {"proj": ("gate_up_proj",), "act": "activation_fn"}
POST: dict[str, Any] = {"norm": None, "post_norm": "post_feedforward_layernorm"}
SANDWICH: dict[str, Any] = POST | {"norm": "pre_feedforward_layernorm"}
BESIDE: dict[str, Any] = {"shared_norm": "input_layernorm", "parallel": True}

FAMILIES: dict[str, Family] = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral"),
    "ministral": Family("Ministral"),
    "ministral3": Family("Ministral3"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3"),
    "smollm3": Family("SmolLM3"),
    "seed_oss": Family("SeedOss", dropout="residual_dropout"),
    "ernie4_5": Family("Ernie4_5"),
    "hunyuan_v1_dense": Family("HunYuanDenseV1"),
    "olmo": Family("Olmo"),
    "gemma": Family("Gemma"),
    "vaultgemma": Family("VaultGemma", norm="pre_feedforward_layernorm"),
    "helium": Family("Helium"),
    "diffllama": Family("DiffLlama"),
    "youtu": Family("Youtu"),
    "granite": Family("Granite", scale="residual_multiplier"),
    "granite_swa": Family("GraniteSWA", scale="residual_multiplier"),
    "minicpm3": Family("MiniCPM3", scale="residual_scale"),
    "hyperclovax": Family("HyperCLOVAX", scale="residual_multiplier", post_norm="post_norm2"),
    "nemotron": Family("Nemotron", **UP),
    "arcee": Family("Arcee", **UP),
    "jais2": Family("Jais2", **UP),
    "apertus": Family("Apertus", **UP, norm="feedforward_layernorm"),
    "nanochat": Family("NanoChat", ("fc1",), False, "activation_fn", "fc2"),
    "starcoder2": Family(
        "Starcoder2", ("c_fc",), False, "act", "c_proj", dropout="residual_dropout"
    ),
    "phi3": Family("Phi3", **FUSED),
    "glm": Family("Glm", **FUSED),
    "glm4": Family("Glm4", **FUSED, post_norm="post_mlp_layernorm"),
    "olmo2": Family("Olmo2", **POST),
    "olmo3": Family("Olmo3", **POST),
    "exaone4": Family("Exaone4", **POST),
    "gemma2": Family("Gemma2", **SANDWICH),
    "gemma3_text": Family(
        "Gemma3", **SANDWICH, module="gemma3", config="TextConfig", base="TextModel"
    ),
    "gpt_neox": Family(
        "GPTNeoX", ("dense_h_to_4h",), False, "act", "dense_4h_to_h", layer="Layer"
    ),
    "persimmon": Family("Persimmon", ("dense_h_to_4h",), False, "act", "dense_4h_to_h"),
    "phi": Family("Phi", ("fc1",), False, "activation_fn", "fc2", **BESIDE),
    "cohere": Family("Cohere", **BESIDE),
    "cohere2": Family("Cohere2", **BESIDE),
    "stablelm": Family("StableLm", shared_norm="input_layernorm"),
    "llama4_text": Family(
        "Llama4", act="activation_fn", mlp="feed_forward",
        module="llama4", layer="TextDecoderLayer", base="TextModel", config="TextConfig",
    ),
}  # fmt: skip
"""By the dense model's type."""


def family_of(model_type: str) -> Family:
    """The row of a model type, dense or ours.

    Raises:
        CheckpointError: there is none.
    """
    dense = model_type.removeprefix(OURS)
    if dense not in FAMILIES:
        raise CheckpointError(
            f"the family {model_type!r} isn't supported (supported: {', '.join(FAMILIES)}): "
            "give a model of one of these, or add a row to versatileffn/models/table.py"
        )
    return FAMILIES[dense]
