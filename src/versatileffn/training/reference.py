"""Every key of a run's YAML file, as a page: docs/configuration.md, `train --help-config`."""

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from versatileffn.ffn.base_config import VARIANTS, FFNConfig
from versatileffn.ffn.knobs import knobs
from versatileffn.training.config import TrainConfig

_LIMITS = (
    ("minimum", "≥ {}"),
    ("exclusiveMinimum", "> {}"),
    ("maximum", "≤ {}"),
    ("exclusiveMaximum", "< {}"),
)
_HEAD = """\
# Configuration

Every key of the YAML file that `versatileffn train` reads; `versatileffn train --help-config`
prints this page. Complete examples lie in [configs/](../configs). `--set section.key=value`
overrides one value. Keys that are unknown, given twice or of another type are refused; paths are
relative to the current folder.

Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and `run.deadline` let a run finish its step and save it; the same
command goes on, to the same weights and the same log as if it had never stopped. A finished run is
made longer by more `max_steps` (or epochs), together with `schedule_steps`, the steps that it had:
learning rate and τ stay where they ended, and run.json says so under `planned_before`.
"""


def reference() -> str:
    """The page, in Markdown, from the schema that also checks the files."""
    schema = TrainConfig.model_json_schema()
    lines = [_HEAD]
    for name, part in schema["properties"].items():
        lines += _section(name, part, schema["$defs"], name in schema.get("required", ()))
    return "\n".join(lines)


def _section(
    path: str, part: dict[str, Any], parts: dict[str, Any], required: bool
) -> Iterator[str]:
    """A heading, a table of keys, and then the sections inside."""
    section = parts[_reference(part) or ""]
    text = " ".join(section["description"].split("\n\n")[0].split())
    optional = "" if required else f" {part.get('description', 'May be left out.')}"
    yield f"## {path}\n\n{text}{optional}\n"
    yield "| key | value | default | what it is |\n|---|---|---|---|"
    inner = {name: field for name, field in section["properties"].items() if _reference(field)}
    for name, field in section["properties"].items():
        if name in inner or (path, name) == ("model", "ffn"):
            value, default = "mapping, see below", "left out" if _nullable(field) else "see below"
        else:
            value = _value(field)
            needed = name in section.get("required", ())
            default = "**required**" if needed else _shown(field.get("default"))
        yield f"| `{name}` | {value} | {default} | {_cell(field['description'])} |"
    yield ""
    if path == "model":
        yield from _ffn()
    for name, field in inner.items():
        yield from _section(f"{path}.{name}", field, parts, True)


def _ffn() -> Iterator[str]:
    """The keys of `model.ffn`: the variant, and the knobs of each."""
    yield f"## model.ffn\n\n{(FFNConfig.__doc__ or '').splitlines()[0]} Each takes its own knobs.\n"
    yield "| key | of | value | default | what it is |\n|---|---|---|---|---|"
    names = ", ".join(f"`{name}`" for name in VARIANTS)
    yield f"| `variant` | all | {names} | `versatile` | The paper's reuse, or a baseline. |"
    for knob in knobs():
        value = _value(TypeAdapter(knob.hint).json_schema())
        whose, default = ", ".join(knob.variants), _shown(knob.default)
        yield f"| `{knob.name}` | {whose} | {value} | {default} | {_cell(knob.text)} |"
    yield ""


def _reference(field: dict[str, Any]) -> str | None:
    """The name of the section that a field holds, if it holds one."""
    for option in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return None


def _value(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_value(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{option}`" for option in field["enum"])
    kinds = {
        "integer": "whole number", "number": "number", "boolean": "`true` or `false`",
        "string": "text", "array": "list of texts", "null": "null", "object": "mapping",
    }  # fmt: skip
    if field.get("items", {}).get("type") == "integer":
        return "list of whole numbers"
    limits = [text.format(_number(field[key])) for key, text in _LIMITS if key in field]
    return " ".join([kinds[field["type"]], ", ".join(limits)]).strip()


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 2**20:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}"


def _nullable(field: dict[str, Any]) -> bool:
    return {"type": "null"} in field.get("anyOf", ())


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
