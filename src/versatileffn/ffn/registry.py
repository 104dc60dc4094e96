"""Controllers by name, so that a config can say who decides and a checkpoint finds it again."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor, nn

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.plan import ReusePlan

ModuleClass = TypeVar("ModuleClass", bound=type[nn.Module])


class Controller(Protocol):
    """What a layer calls: a module made from D, F and the config.

    `tau` and `open_loops`, where it has them, are moved by the training schedule, `loop_penalty` by
    `set_compute_budget` (what it does to the logits is `charged` of `ffn/budget.py`);
    `reset_parameters(std)` draws its weights.
    Gains are the layer's, not the controller's. One with a method `see(input_ids)` is shown the
    tokens of each forward pass, [B, T], before it decides; None where only embeddings are given.
    """

    def __init__(self, d_model: int, d_hidden: int, config: Versatile) -> None: ...

    def __call__(self, hidden: Tensor) -> ReusePlan:
        """Decide for each token: H (or norm(H)), [..., D], to a plan of the same leading shape."""
        ...

    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw all weights."""
        ...


CONTROLLERS: dict[str, type[nn.Module]] = {}


def register_controller(name: str) -> Callable[[ModuleClass], ModuleClass]:
    """Class decorator: give a controller the name by which `Versatile.controller` calls it.

    Raises:
        ConfigError: another class has that name.
    """

    def register(cls: ModuleClass) -> ModuleClass:
        taken = CONTROLLERS.get(name, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"a controller {name!r} is there already, {taken}: choose a name")
        CONTROLLERS[name] = cls
        return cls

    return register


def make_controller(d_model: int, d_hidden: int, config: Versatile) -> nn.Module:
    """The controller that a config names, its weights drawn.

    Raises:
        ConfigError: nobody has registered that name.
    """
    if config.controller not in CONTROLLERS:
        raise ConfigError(
            f"controller={config.controller!r} is unknown (known: {sorted(CONTROLLERS)}): import "
            f"the module that has @register_controller({config.controller!r}) before the model is "
            "made or loaded (on the command line --import, in a run's YAML model.imports)"
        )
    return CONTROLLERS[config.controller](d_model, d_hidden, config)
