"""The knobs of all variants as one table, read from their records, for command line and docs."""

import inspect
import re
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from versatileffn.ffn.base_config import VARIANTS, FFNConfig
from versatileffn.ffn.config import Versatile


@dataclass(frozen=True)
class Knob:
    """One knob.

    Args:
        name: as in Python and YAML.
        hint: its type.
        default: the same in every variant that has it.
        text: what it is, from the first of these variants' docstring.
        variants: whose it is.
    """

    name: str
    hint: Any
    default: Any
    text: str
    variants: tuple[str, ...]


def knobs() -> list[Knob]:
    """Each knob once, the paper's first."""
    found: dict[str, Knob] = {}
    configs: list[type[FFNConfig]] = [Versatile, *VARIANTS.values()]
    for config in configs:
        texts, hints = described(config), get_type_hints(config)
        for field in fields(config):
            whose = tuple(v for v, c in VARIANTS.items() if field.name in c.names())
            new = Knob(field.name, hints[field.name], field.default, texts[field.name], whose)
            found.setdefault(field.name, new)
    return list(found.values())


def described(config: type[FFNConfig]) -> dict[str, str]:
    """What a record's docstring says of each argument."""
    arguments = (inspect.getdoc(config) or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
