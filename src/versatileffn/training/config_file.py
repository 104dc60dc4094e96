"""From a YAML file and `key=value` overrides to a validated record, or to one clear line."""

import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from yaml.constructor import ConstructorError

from versatileffn.errors import ConfigError
from versatileffn.ffn.values import suggestion

Schema = TypeVar("Schema", bound=BaseModel)
Count = Annotated[int, Field(ge=1, le=2**40)]
"""Of steps, windows or tokens."""
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
_MOST_DIGITS = 100
_MOST_BYTES = 2**20
_MOST_PARTS = 8  # of a dotted key
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


class Section(BaseModel):
    """A frozen part of a configuration: unknown keys and values of another type are errors.

    What stands below a field describes it, in docs/configuration.md, too.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        strict=True,
        use_attribute_docstrings=True,
    )


def _expand(path: str) -> str:
    # What isn't UTF-8 couldn't be written into the run's record.
    if not path or "\0" in path or any("\ud800" <= letter <= "\udfff" for letter in path):
        raise ValueError(f"{path!r} is no path: name a file or folder")
    return os.path.expanduser(path)


UserPath = Annotated[str, AfterValidator(_expand)]
"""A path as people write it; `~` is their home."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-5` is a number, a key may be given only once, there are
    no aliases (few lines of them stand for billions of values), and numbers have a size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node that is written out."""
        if self.check_event(yaml.AliasEvent):
            problem = "an alias, which isn't read here: write its value out"
            raise ConstructorError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: Any) -> int:
        """Read a whole number; one of thousands of digits couldn't be printed."""
        if len(node.value) > _MOST_DIGITS:
            problem = f"a number of {len(node.value):,} digits is more than any value here"
            raise ConstructorError(None, None, problem, node.start_mark)
        return super().construct_yaml_int(node)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping; PyYAML would silently let the last of equal keys win."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} is given twice; remove one"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "is not YAML"
        raise ConfigError(f"{where}: can't be parsed{line}: {problem}") from None
    except (ValueError, RecursionError) as error:  # a date that isn't one, brackets without end
        raise ConfigError(f"{where}: can't be parsed: {error}; quote it if it is a text") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: can't be read ({reason}); give a YAML file") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: larger than {_MOST_BYTES:,} bytes; give a YAML file")
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of sections, not {type(values).__name__}")
    return values


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested `values` with each `a.b=value` of `overrides` set (values in YAML).

    Raises:
        ConfigError: an override has no `=`, or leads through something that isn't a mapping.
    """
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for override in overrides:
        where = f"--set {_shortened(override, 80)}"
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > _MOST_PARTS:
            raise ConfigError(f"{where}: write it as section.key=value")
        section = result
        for depth, part in enumerate(parts[:-1], start=1):
            inner = section.get(part)
            if inner is not None and not isinstance(inner, Mapping):
                here = ".".join(parts[:depth])
                raise ConfigError(f"{where}: {here} is {_SHORT.repr(inner)}, not a section")
            section[part] = dict(inner or {})
            section = section[part]
        section[parts[-1]] = _parse(text, where)
    return result


def _inner_schema(annotation: Any) -> type[BaseModel] | None:
    """The record that a field holds, be it optional or not; None for plain values."""
    options = (annotation, *get_args(annotation))
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def dotted_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a record and of the records in it."""
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        inner = _inner_schema(field.annotation)
        if inner is not None:
            keys += dotted_keys(inner, f"{prefix}{name}.")
    return keys


def _explain_unknown(schema: type[BaseModel], location: Sequence[Any]) -> str:
    """What to say of a key that its section doesn't have: a key like it, there or elsewhere."""
    dotted = ".".join(map(str, location))
    parent, _, name = dotted.rpartition(".")
    places: dict[str, list[str]] = {}
    for key in dotted_keys(schema):
        section, _, leaf = key.rpartition(".")
        places.setdefault(section, []).append(leaf)
    siblings = places.get(parent, [])
    if not get_close_matches(name, siblings, n=1, cutoff=0.5):
        for section, leaves in places.items():
            if meant := get_close_matches(name, leaves, n=1, cutoff=0.75):
                return (
                    f"unknown key {dotted!r}; did you mean {f'{section}.{meant[0]}'.strip('.')!r}?"
                )
    return f"unknown key {dotted!r}; {suggestion(name, siblings)}"


def validate(schema: type[Schema], values: Any, where: str) -> Schema:
    """Build a record from parsed values.

    Raises:
        ConfigError: one line with `where`, the key path, and what is wrong with its value.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error, schema)}") from None


def _first_problem(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first of a validation's problems in one line: where, and what."""
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    where = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        text = _explain_unknown(schema, problem["loc"])
    elif problem["type"] == "missing":
        text = f"{where} is missing; add it"
    elif problem["type"] == "value_error":
        text = f"{where}: {message}" if where else message
    else:
        text = f"{where}={_SHORT.repr(problem['input'])}: {message[:1].lower()}{message[1:]}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _shortened(" ".join(text.split()), 400) + more
