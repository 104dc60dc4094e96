"""Where a verb that measures computes."""

from typing import TYPE_CHECKING, Annotated

import typer

from versatileffn.errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceOption = Annotated[
    str | None, typer.Option(help="As PyTorch names it.", show_default="cuda, if there is one")
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
