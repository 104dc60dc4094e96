"""Families of Transformers models whose FFN is reused: one factory makes the classes of each.

The classes are this module's attributes (`family.VersatileLlamaForCausalLM`), made when they are
first looked up or when the first config of their family is made, since Transformers imports each
family's code for them. They are found by name, so they pickle, and FSDP's wrap policy sees them.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from versatileffn.models.base import ReuseBaseModel
from versatileffn.models.config import (
    config_class,
    is_reuse,
    module_name,
    reuse_config,
)
from versatileffn.models.heads import (
    ReuseForCausalLM,
    ReuseForQuestionAnswering,
    ReuseForSequenceClassification,
    ReuseForTokenClassification,
)
from versatileffn.models.layer import HeldFFN, ReuseLayer
from versatileffn.models.pretrained import FLOAT32, FLOAT32_FLAGS
from versatileffn.models.table import FAMILIES, OURS, Family, family_of

__all__ = ["FAMILIES", "Family", "family_of", "is_reuse", "model_class", "reuse_config"]
HEADS = {
    "ForCausalLM": (AutoModelForCausalLM, ReuseForCausalLM),
    "ForSequenceClassification": (
        AutoModelForSequenceClassification,
        ReuseForSequenceClassification,
    ),
    "ForTokenClassification": (AutoModelForTokenClassification, ReuseForTokenClassification),
    "ForQuestionAnswering": (AutoModelForQuestionAnswering, ReuseForQuestionAnswering),
}


@cache
def make_classes(model_type: str) -> dict[str, type[Any]]:
    """Our classes of a family, by the names of its own, known to the Auto classes.

    Args:
        model_type: the dense model's.
    """
    family, config = family_of(model_type), config_class(model_type)
    theirs = importlib.import_module(module_name(model_type, family, "modeling"))
    layer, base = family.prefix + family.layer, family.prefix + family.base
    made = {family.prefix + family.config: config}

    def make(name: str, mixin: type[Any], **body: Any) -> type[Any]:
        dense = getattr(theirs, name)
        body["__module__"], body["__doc__"] = __name__, f"`{name}` with a reused FFN."
        made[name] = type(f"Versatile{name}", (mixin, dense), body)
        return made[name]

    mlps = [name for name in vars(theirs) if re.fullmatch(rf"{family.prefix}\w*MLP", name)]
    make(
        layer, ReuseLayer, family=family,
        held={getattr(theirs, name): make(name, HeldFFN) for name in mlps},
        own_forward=staticmethod(inspect.unwrap(getattr(theirs, layer).forward)),
    )  # fmt: skip
    prefix = getattr(theirs, base).base_model_prefix
    models: dict[str, tuple[Any, Any]] = {base: (AutoModel, ReuseBaseModel)}
    models |= {family.prefix + suffix: head for suffix, head in HEADS.items()}
    for name, (auto, mixin) in models.items():
        if hasattr(theirs, name):
            dense = getattr(theirs, name)
            model = make(
                name, mixin, config_class=config,
                base_model_prefix=prefix,  # some of theirs have another for question answering
                own_init=staticmethod(rebound(dense.__init__, made)),
                _no_split_modules=[made[layer].__name__],
                **{flag: [*(getattr(dense, flag) or ()), *FLOAT32] for flag in FLOAT32_FLAGS},
            )  # fmt: skip
            model.forward = signed(model, mixin.forward, dense.forward)
            auto.register(config, model, exist_ok=True)
            copy_renamings(name, model.__name__)
    copy_renamings(model_type, config.model_type)
    for cls in made.values():
        globals()[cls.__name__] = cls
    return made


def announce(model_type: str) -> None:
    """Make our classes of a family, and show them where servers and trainers look for a name.

    That is the module `transformers`, of which there may be two: its `processing_utils` executes it
    again, and who imported it before has another than who does so later.

    Args:
        model_type: the dense model's.
    """
    holders = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
    there = [sys.modules["transformers"], *(held.get("transformers") for held in holders)]
    for module in there:
        if isinstance(module, ModuleType) and module.__name__ == "transformers":
            for cls in make_classes(model_type).values():
                setattr(module, cls.__name__, cls)


def copy_renamings(theirs: str, ours: str) -> None:
    """Let ours load what older checkpoints of theirs call differently."""
    renamings = get_checkpoint_conversion_mapping(theirs)
    if renamings:
        register_checkpoint_conversion_mapping(ours, renamings, overwrite=True)


def rebound(function: Callable[..., Any], ours: dict[str, type[Any]]) -> Callable[..., Any]:
    """A family's function with our classes under the names of its own.

    So its constructors build our layers in place of theirs, and nothing is built twice.
    """
    plain: Any = inspect.unwrap(function)
    scope = plain.__globals__ | ours
    copy = FunctionType(
        plain.__code__, scope, plain.__name__, plain.__defaults__, plain.__closure__
    )
    copy.__kwdefaults__ = plain.__kwdefaults__
    return copy


def signed(
    cls: type[Any], ours: Callable[..., Any], theirs: Callable[..., Any]
) -> Callable[..., Any]:
    """`cls.forward` with the family's parameters in its signature, which generation and trainers
    look up, and ours that it lacks."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(cls, self).forward(*args, **kwargs)

    known = dict(inspect.signature(theirs).parameters)
    rest = known.popitem()[1] if next(reversed(known.values())).kind.name == "VAR_KEYWORD" else None
    for name, parameter in inspect.signature(ours).parameters.items():
        if name != "decisions" and not parameter.kind.name.startswith("VAR_"):
            known.setdefault(name, parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    rest = rest or inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    forward.__signature__ = inspect.Signature([*known.values(), rest])  # type: ignore[attr-defined]
    forward.__doc__ = ours.__doc__
    return forward


def model_class(config: Any) -> type[Any]:
    """The causal language model of a config, dense or ours.

    Raises:
        CheckpointError: the family isn't supported.
    """
    family, model_type = family_of(config.model_type), config.model_type.removeprefix(OURS)
    name = f"{family.prefix}ForCausalLM"
    if is_reuse(config):
        return make_classes(model_type)[name]
    module = importlib.import_module(module_name(model_type, family, "modeling"))
    dense: type[Any] = getattr(module, name)
    return dense


def find_class(name: str) -> Any:
    """One of our classes by its name, made when first asked for."""
    for model_type, family in FAMILIES.items():
        if name == f"Versatile{family.prefix}{family.config}":
            return config_class(model_type)
        if name.startswith(f"Versatile{family.prefix}"):
            for cls in make_classes(model_type).values():
                if cls.__name__ == name:
                    return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__getattr__ = find_class
