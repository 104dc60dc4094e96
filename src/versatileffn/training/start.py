"""The model that a run starts from: built in each process, or divided among all of them."""

from typing import Any

import torch
from transformers import PreTrainedConfig

from versatileffn.training.announcement import say
from versatileffn.training.batches import BatchPlan
from versatileffn.training.config import TrainConfig
from versatileffn.training.init import build_model, freeze, set_execution
from versatileffn.training.open_loops import prepare_loops
from versatileffn.training.parallel import shards
from versatileffn.training.piecewise import Unfilled, can_fill
from versatileffn.training.sharding import shard
from versatileffn.training.sizes import check_sizes


class StartModel:
    """A run's model as its first step finds it.

    Args:
        config: the run.
        planned: what the model will be, see `model_config`.
        plan: how the windows are spread; says how many processes there are.
        rank: of this process, the first of which says what the user should know.

    Attributes:
        model: complete, or without its values until `spread`.
        checkpoint_bytes: of one checkpoint, about.

    Raises:
        ResourceError: memory is too small; nothing was allocated.
        ConfigError, CheckpointError: see `build_model`.
    """

    def __init__(
        self, config: TrainConfig, planned: PreTrainedConfig, plan: BatchPlan, rank: int
    ) -> None:
        self.config, self.processes = config, plan.world_size
        self._divides = shards(config.parallel) and self.processes > 1
        piecewise = self._divides and can_fill(config.model, planned)
        self.checkpoint_bytes = check_sizes(planned, config, plan, piecewise)
        if self._divides and not piecewise:
            say(
                rank,
                f"model.init_from={config.model.init_from} can't be read piece by piece (it is to "
                "be converted, on the Hub, or of another format): each process builds the whole "
                "model in main memory before its weights are divided; where that is too much, make "
                "a folder of it first (`versatileffn upcycle`)",
            )
        seed = config.run.seed
        self._unfilled = Unfilled(config.model, planned, seed) if piecewise else None
        self.model: Any = (
            self._unfilled.model if self._unfilled else build_model(config.model, planned, seed)
        )
        set_execution(self.model, config.run.execution)
        freeze(self.model, config.optim.frozen)
        prepare_loops(self.model, config.optim)

    def spread(self, device: torch.device) -> None:
        """Divide the weights among the processes of the default group, where the run asks for it.

        Args:
            device: of this process.

        Raises:
            ConfigError: a weight would not be divided.
            CheckpointError: the checkpoint to start from can't be read.
        """
        if self.config.parallel is not None and self._divides:
            shard(self.model, self.config.parallel, device, self.processes)
        if self._unfilled is not None:
            self._unfilled.fill(device)
