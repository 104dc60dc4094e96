"""Whether Python code that lies with a checkpoint may run: never, unless the user says so.

Transformers asks on the terminal when nobody has decided, where the question is easily lost and a
`y` meant for something else answers it. So every loader here is told; it is never asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from versatileffn.errors import CheckpointError

_TRUSTED = ContextVar("versatileffn_trust_remote_code", default=False)


class RemoteCodeError(CheckpointError):
    """A checkpoint or tokenizer can't be loaded without running code of its own."""

    def __init__(self, source: object) -> None:
        super().__init__(
            f"{source} brings Python code of its own, which isn't run unless you trust it: read "
            "it, then pass --trust-remote-code (in Python: trust_remote_code=True)"
        )


def trusts_remote_code() -> bool:
    """What Transformers' loaders are to be told as `trust_remote_code`."""
    return _TRUSTED.get()


@contextmanager
def remote_code(trusted: bool) -> Iterator[None]:
    """Decide for all that is loaded inside; a decision for yes outside holds inside, too."""
    token = _TRUSTED.set(trusted or _TRUSTED.get())
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def wants_remote_code(error: BaseException) -> bool:
    """Whether a loader of Transformers failed because it wasn't allowed to run code."""
    return isinstance(error, ValueError) and "trust_remote_code=True" in str(error)
