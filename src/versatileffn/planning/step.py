"""One training step on tensors that take no memory: what it would hold at its fullest moment.

The model, its losses, its executors, autograd, AdamW and torch's checkpointing are the real ones;
only the numbers aren't there. So nothing here knows what a layer keeps: it is seen.

Legend: B windows of a micro-batch, T tokens of a window.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig

from versatileffn.ffn.imagined import assume_mean_loops
from versatileffn.models.checkpoint import quiet_transformers
from versatileffn.planning.live import LiveMemory
from versatileffn.planning.ranks import all_gather_outputs, imagined_ranks
from versatileffn.training.config import TrainConfig
from versatileffn.training.init import freeze, new_model, set_execution
from versatileffn.training.open_loops import prepare_loops
from versatileffn.training.parallel import shards
from versatileffn.training.sharding import shard_over

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer state"
ACTIVATIONS, LOSS, TEMPORARY = "activations", "logits and loss", "temporary"
GATHERED, BUCKETS = "gathered weights", "gradient buckets"
"""FSDP2's weights of layers that are whole for the moment; DDP's copies of gradients."""
PARTS = (WEIGHTS, GATHERED, GRADIENTS, BUCKETS, OPTIMIZER, ACTIVATIONS, LOSS, TEMPORARY)


@dataclass(frozen=True)
class Share:
    """What one process does in an optimizer step.

    Args:
        micro_batch: B.
        seq_len: T.
        accumulation: micro-batches.
        ranks: processes.
    """

    micro_batch: int
    seq_len: int
    accumulation: int
    ranks: int = 1


def peak_memory(
    planned: PreTrainedConfig, config: TrainConfig, share: Share, mean_loops: float
) -> dict[str, int]:
    """What one process holds at its peak, in a step after the first.

    Args:
        planned: of the model that is trained.
        config: the run; its `model` and `data` aren't looked at, `parallel` is.
        share: this process's of the work.
        mean_loops: of the tokens, where they choose, see `assume_mean_loops`.

    Returns:
        Bytes by part.

    Raises:
        ConfigError: settings that the model can't have.
    """
    memory = LiveMemory()
    section = config.parallel if shards(config.parallel) and share.ranks > 1 else None
    ranks = nullcontext() if section is None else imagined_ranks(share.ranks, section)
    with (
        quiet_transformers(),
        ranks as mesh,
        FakeTensorMode(allow_non_fake_inputs=True),
        assume_mean_loops(mean_loops),
        memory,
    ):
        memory.part = WEIGHTS
        model = _model(planned, config)
        if section is not None and mesh is not None:
            shard_over(model, section, mesh)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = _ready_optimizer(trained, memory)
        _follow(model, trained, memory)
        if section is not None:
            _forward(model, _tokens(1, share.seq_len), config.run.bf16, share, memory).backward()
            memory.belongs_to(GATHERED, all_gather_outputs(model))
            optimizer.zero_grad()
        memory.part = BUCKETS
        copies = share.ranks > 1 and section is None
        buckets = [torch.empty_like(p) for p in trained] if copies else []
        memory.forget_peak()
        memory.part = ACTIVATIONS
        batch = [_tokens(share.micro_batch, share.seq_len) for _ in range(share.accumulation)]
        for inputs in batch[:2]:  # the second finds gradients; later ones are like it
            _forward(model, inputs, config.run.bf16, share, memory).backward()
        memory.part = TEMPORARY
        nn.utils.clip_grad_norm_(trained, config.optim.max_grad_norm)
        optimizer.step()
        del buckets
    return {part: memory.peak[part] for part in PARTS if memory.peak[part]}


def _model(planned: PreTrainedConfig, config: TrainConfig) -> Any:
    """The model as a run makes it ready, its weights in float32, torch's default."""
    model: Any = new_model(planned).train()
    set_execution(model, config.run.execution)
    freeze(model, config.optim.frozen)
    prepare_loops(model, config.optim)
    if config.run.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _ready_optimizer(trained: list[nn.Parameter], memory: LiveMemory) -> torch.optim.Optimizer:
    """AdamW as `training_arguments` asks for it, after a first step."""
    memory.part = OPTIMIZER
    optimizer = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _follow(model: Any, trained: list[nn.Parameter], memory: LiveMemory) -> None:
    """Tell what tensors are for while a step goes on."""

    def has_gradient(parameter: Tensor) -> None:
        memory.belongs_to(GRADIENTS, [parameter.grad])

    def after_layers(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        memory.part = LOSS
        hidden = outputs[0]
        if hidden.requires_grad:
            hidden.register_hook(back_to_layers)

    def back_to_layers(_gradient: Tensor) -> None:
        memory.part = TEMPORARY

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(has_gradient)
    model.base_model.register_forward_hook(after_layers)


def _tokens(windows: int, seq_len: int) -> dict[str, Tensor]:
    """One micro-batch, as the loader gives it."""
    ids = torch.zeros(windows, seq_len, dtype=torch.long)
    return {"input_ids": ids, "labels": ids.clone()}


def _forward(
    model: Any, inputs: dict[str, Tensor], bf16: bool, share: Share, memory: LiveMemory
) -> Tensor:
    """The loss as the Trainer computes it; its outputs are gone when this returns."""
    memory.part = ACTIVATIONS
    predicted = share.accumulation * share.micro_batch * (share.seq_len - 1)
    forward = convert_outputs_to_fp32(model.__call__) if bf16 else model
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        loss: Tensor = forward(**inputs, num_items_in_batch=predicted).loss
    return loss
