"""Reading a checkpoint of ours back: everything fits, and nothing in it is run."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from versatileffn.errors import CheckpointError
from versatileffn.memory import raise_out_of_memory
from versatileffn.training.peers import is_lost

UNREADABLE = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, SafetensorError
)  # fmt: skip
"""What torch, safetensors and our own code say of damage."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tell what is wrong with a file of a checkpoint.

    Raises:
        CheckpointError: it can't be read, or holds objects that would run code.
    """
    try:
        yield
    except pickle.UnpicklingError:
        reason = "holds objects other than tensors and numbers; none was unpickled, no code was run"
        raise _unusable(path, reason) from None
    except UNREADABLE as error:
        raise_out_of_memory(error)
        if is_lost(error):  # which says nothing of the file
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise _unusable(path, f"can't be read ({reason})") from None


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {reason}: delete {path.parent}, and the same command resumes from the checkpoint "
        "before it"
    )


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load all weights of a checkpoint into a model. Of tied ones, it holds only one.

    Raises:
        CheckpointError: weights are missing, left over, damaged, or of another shape.
    """
    with reading(checkpoint / "model.safetensors"):
        state = {
            name: tensor
            for path in sorted(checkpoint.glob("*.safetensors"))
            for name, tensor in load_file(path, device="cpu").items()
        }
        missing, unexpected = model.load_state_dict(state, strict=False)
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in state if name in own}
    wrong = [name for name in missing if own[name].data_ptr() not in loaded] + unexpected
    if wrong:
        raise _unusable(
            checkpoint / "model.safetensors", f"isn't of this model ({wrong[0]} doesn't fit)"
        )
