"""A divided model is filled piece by piece: no process ever holds it whole.

It is built without memory for its matrices, divided, and then each process draws, or reads, one
tensor at a time and keeps its share. The values are those of a model that is built whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedConfig

from versatileffn.errors import CheckpointError
from versatileffn.memory import raise_out_of_memory
from versatileffn.models.family import model_class
from versatileffn.models.shares import load_shares, shares_in, stored_in, weights_of
from versatileffn.training.config import ModelSection
from versatileffn.training.init import draw, draws_itself, seed_of
from versatileffn.training.peers import is_lost
from versatileffn.training.sharding import whole


class Unfilled:
    """A model without its values, and what they will be.

    Args:
        section: where the weights come from.
        config: see `model_config`.
        seed: of new weights.

    Attributes:
        model: its parameters are on the meta device; divide it before `fill`.
    """

    def __init__(self, section: ModelSection, config: PreTrainedConfig, seed: int) -> None:
        self.section, self.config, self.seed = section, config, seed
        with _matrices_on_meta():
            self.model: Any = model_class(config)(config)
        named = list(self.model.named_parameters())
        self._small = {n: w.detach().clone() for n, w in named if not w.is_meta}
        self._buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        self._modules = {
            name: deepcopy(module)
            for name, module in self.model.named_modules()
            if draws_itself(module)
        }
        buffers = [(m, dict(m._buffers)) for m in self.model.modules() if m._buffers]
        self.model.to("meta")
        for module, kept in buffers:
            module._buffers.update(kept)
        self.model.tie_weights()

    def fill(self, device: torch.device) -> None:
        """Give each process its share of each value.

        Raises:
            CheckpointError: the checkpoint can't be read, or holds NaN or infinity.
        """
        self.model.to_empty(device=device)
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])
            if self.section.init_from is None:
                std = getattr(self.config, "initializer_range", 0.02)
                themselves = self._drawn_by_modules(std)
                for name, weight in self.model.named_parameters():
                    _put(weight, self._value(name, weight, std, themselves))
            else:
                self._read(self.section.init_from)

    def _value(
        self, name: str, weight: Tensor, std: float, themselves: dict[str, Tensor]
    ) -> Tensor:
        """The whole tensor, see `truncated_init`."""
        if name in themselves:
            return themselves[name]
        if weight.ndim >= 2:
            return draw(name, weight.shape, std, self.seed)
        return torch.zeros(weight.shape) if name.endswith("bias") else self._small[name]

    def _drawn_by_modules(self, std: float) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            for name, module in self._modules.items():
                module.to_empty(device="cpu")
                torch.manual_seed(seed_of(self.seed, name))
                module.reset_parameters(std)
                found |= {f"{name}.{inner}": w for inner, w in module.named_parameters()}
        return found

    def _read(self, source: str) -> None:
        folder = shares_in(source) or Path(source).expanduser()
        try:
            load_shares(weights_of(self.model), folder)
        except Exception as error:
            raise_out_of_memory(error)
            if is_lost(error):
                raise
            raise CheckpointError(
                f"the weights of {source} can't be read ({error}): copy the checkpoint again"
            ) from None
        for name, weight in self.model.named_parameters():
            if not whole(weight.norm()).isfinite():
                raise CheckpointError(
                    f"{source}: {name} holds NaN or infinity: the checkpoint is damaged or diverged"
                )


def can_fill(section: ModelSection, config: PreTrainedConfig) -> bool:
    """Whether each value is drawn by name, or lies in a local folder as it is.

    Conversions of dense checkpoints, those that Transformers would rename, other formats and the
    Hub's aren't: such a model is built whole in each process's main memory, and then divided.
    """
    if section.init_from is None:
        return True
    folder = shares_in(section.init_from) or Path(section.init_from).expanduser()
    stored = stored_in(folder) if folder.is_dir() else {}
    with torch.device("meta"):
        wanted = weights_of(model_class(config)(deepcopy(config)))
    return {name: tuple(tensor.shape) for name, tensor in wanted.items()} == stored


def _put(weight: Tensor, value: Tensor) -> None:
    """Keep this process's share of a value that every process has."""
    if isinstance(weight, DTensor):
        given = distribute_tensor(
            value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
        )
        weight.to_local().copy_(given.to_local())
    else:
        weight.copy_(value)


@contextmanager
def _matrices_on_meta() -> Iterator[None]:
    """Modules that are made here have no memory for their matrices; norms, biases and gains keep
    what their constructors give them."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.ndim >= 2:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
