"""LoRA, by PEFT, on a model whose FFN is reused: which parts get an adapter, which are trained."""

from typing import Any

from torch import nn

from versatileffn.errors import ConfigError
from versatileffn.layer import NEW_TENSORS
from versatileffn.models.pretrained import ReusePreTrainedModel

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""What PEFT calls each kind of model, by the end of its class's name."""


def lora_config(model: Any, **options: Any) -> Any:
    """A `peft.LoraConfig`: adapters on the dense layer's linear maps, and the reuse itself trained.

    Adapters go on attention and on the FFN, whatever the family calls its parts. What the reuse
    adds (controller, gains, weights by loop, real experts) is small, or starts at 0, and is trained
    and saved whole: with gains that stay 0, loops cost their time and change nothing.

    Args:
        model: what the adapters are for, not wrapped yet.
        options: of `LoraConfig`, instead of these (r, lora_alpha, target_modules, …); to
            `modules_to_save` they add.

    Raises:
        ConfigError: PEFT isn't installed, or it is no reuse model.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise ConfigError("LoRA needs a package: pip install peft") from None
    if not isinstance(model, ReusePreTrainedModel):
        raise ConfigError(f"a {type(model).__name__} is no model whose FFN is reused: give one")
    names = [name for name, _ in model.named_parameters()]
    added = {new.rstrip(".") for new in NEW_TENSORS if any(f".{new}" in name for name in names)}
    linears = {
        name.rpartition(".")[2]
        for layer in model.reuse_layers()
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(NEW_TENSORS)
    }
    kind = next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), None)
    chosen = {"task_type": kind, "target_modules": sorted(linears)} | options
    return LoraConfig(
        **chosen | {"modules_to_save": sorted({*added, *(options.get("modules_to_save") or ())})}
    )
