"""Options that several verbs share, each declared once."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceOption = Annotated[
    str | None, typer.Option(help="As PyTorch names it.", show_default="cuda, if there is one")
]
Bf16Option = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 instead of float32.")]
TRUST = "trust_remote_code"
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that lies with a checkpoint or tokenizer. Without it none is run, "
        "and what needs it is refused.",
    ),
]


def choose_device(name: str | None) -> "torch.device":
    """A device that works: the one that is named, else CUDA, else the CPU.

    Others have to be asked for: scores are summed in float64, which Apple's lacks.

    Raises:
        ConfigError: it can't be used here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that is only a name can't tell
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} can't be used ({reason}): use --device cpu") from None
    return device


def precision(bf16: bool) -> "torch.dtype":
    """What `--bf16` asks for."""
    import torch

    return torch.bfloat16 if bf16 else torch.float32


def with_options(
    command: Callable[..., None],
    run: Callable[..., None],
    options: Mapping[str, tuple[Any, Any]],
    instead_of: str = "",
) -> Callable[..., None]:
    """A function with a command's own options and further ones.

    Args:
        command: what it looks like.
        run: what it does.
        options: annotation and default of the further ones, by name.
        instead_of: an argument of the command that they stand for.
    """
    own = [p for name, p in inspect.signature(command).parameters.items() if name != instead_of]
    new = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in options.items()
    ]
    functools.update_wrapper(run, command)
    run.__signature__ = inspect.Signature(own + new)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in own + new}
    return run


def loads_checkpoints(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--trust-remote-code`; it holds for everything that the command loads."""

    def run(*arguments: Any, trust_remote_code: bool, **options: Any) -> None:
        from versatileffn.models.trust import remote_code

        with remote_code(trust_remote_code):
            command(*arguments, **options)

    return with_options(command, run, {TRUST: (TrustOption, False)})
