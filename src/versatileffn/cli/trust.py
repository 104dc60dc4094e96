"""`--trust-remote-code`, the same for every verb that loads checkpoints of others."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

NAME = "trust_remote_code"
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that lies with a checkpoint or tokenizer. Without it none is run, "
        "and what needs it is refused.",
    ),
]


def loads_checkpoints(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option to a command; it holds for everything that the command loads."""

    @functools.wraps(command)
    def run(*arguments: Any, trust_remote_code: bool, **options: Any) -> None:
        from versatileffn.models.trust import remote_code

        with remote_code(trust_remote_code):
            command(*arguments, **options)

    signature = inspect.signature(command)
    option = inspect.Parameter(
        NAME, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=TrustRemoteCode
    )
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    run.__annotations__ = {**command.__annotations__, NAME: TrustRemoteCode}
    return run
