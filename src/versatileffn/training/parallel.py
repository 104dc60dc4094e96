"""The `parallel:` section: how the processes of a run share its work, and who else may say so."""

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator

from versatileffn.errors import ConfigError
from versatileffn.training.config_file import Section

Strategy = Literal["ddp", "fsdp2"]
OTHERS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""What `accelerate launch` tells its processes where it was asked for an engine."""


class ParallelSection(Section):
    """How the processes that `torchrun` or `accelerate launch` starts share a run."""

    strategy: Strategy = "ddp"
    """`ddp`: each process holds the whole model. `fsdp2`: each holds a share of the weights,
    gradients and optimizer state of every decoder layer, and writes its share of a checkpoint."""
    replicas: Annotated[int, Field(ge=1, le=2**20)] = 1
    """fsdp2: how often the whole model is held. With as many as there are nodes, weights are
    gathered within a node, and only gradients travel between nodes."""
    reshard_after_forward: bool = True
    """fsdp2: gathered weights are dropped after a layer's forward pass and gathered again for its
    backward pass. `false` keeps them: less traffic, more memory."""

    @model_validator(mode="after")
    def _has_effect(self) -> "ParallelSection":
        for name in type(self).model_fields if self.strategy == "ddp" else ():
            if name != "strategy" and name in self.model_fields_set:
                raise ValueError(f"{name} has no effect with strategy ddp: leave it out")
        return self


def shards(section: ParallelSection | None) -> bool:
    """Whether checkpoints are written in shares, whatever the number of processes."""
    return section is not None and section.strategy == "fsdp2"


def shares_of(section: ParallelSection | None, processes: int) -> int:
    """Into how many parts the weights are divided."""
    return processes // section.replicas if section is not None and shards(section) else 1


def check_launch(section: ParallelSection | None, processes: int) -> None:
    """See that the launcher doesn't ask for another engine than the configuration.

    Args:
        section: of the configuration.
        processes: how many there are.

    Raises:
        ConfigError: it does, or the processes can't be divided as asked for.
    """
    for name in OTHERS:
        if os.environ.get(name, "false").lower() in ("true", "1"):
            engine = name.removeprefix("ACCELERATE_USE_")
            raise ConfigError(
                f"accelerate launch was told to use {engine}: launch without it, and say "
                "parallel.strategy=fsdp2 to share a model among processes"
            )
    if section is not None and processes > 1 and processes == section.replicas:
        raise ConfigError(
            f"parallel.replicas={section.replicas} leaves nothing to divide among {processes} "
            "processes: lower it, or say parallel.strategy=ddp"
        )
    if section is not None and processes > 1 and processes % section.replicas:
        raise ConfigError(
            f"parallel.replicas={section.replicas} doesn't divide {processes} processes: change "
            "one of them"
        )
