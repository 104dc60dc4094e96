"""What a run needs of this machine, by arithmetic, before anything of it is allocated.

Legend: D hidden_size, F intermediate_size, L loops, V vocabulary, M tokens of one micro-batch.
"""

import os

import torch
from transformers import PreTrainedConfig

from versatileffn.ffn.config import KLoop, Versatile
from versatileffn.memory import check_memory
from versatileffn.models.family import is_reuse
from versatileffn.models.weights import parameter_count
from versatileffn.training.batches import BatchPlan
from versatileffn.training.config import TrainConfig
from versatileffn.training.parallel import shares_of

FLOAT = 4
TRAINED = 4 * FLOAT
"""Bytes per parameter: weight, gradient, and AdamW's two moments."""
STORED = 3 * FLOAT
"""Bytes of a checkpoint per parameter: a weight and the two moments."""
TOKEN = 2 * 8
"""Bytes per token of a step that waits in memory: its id, and itself as a label."""
READER = 64 * 2**20
"""Bytes that a process which reads windows ahead takes for itself at least."""


def activation_bytes(config: PreTrainedConfig, tokens: int, checkpointing: bool) -> int:
    """What a forward pass of a micro-batch keeps for its backward one, an underestimate.

    Args:
        config: of the model.
        tokens: M.
        checkpointing: whether only each layer's input is kept.
    """
    logits = 2 * config.vocab_size
    hidden = config.hidden_size
    loops, reused = 0, config.num_hidden_layers
    if is_reuse(config):
        ffn = config.ffn()
        # The loop head's logits and their softmax; a k-loop keeps each loop's input.
        each = {Versatile: 2, KLoop: hidden}.get(type(ffn), 0)
        loops = each * ffn.loops
        reused = len(getattr(ffn, "reuse_layers", None) or range(reused))
    layers = config.num_hidden_layers * (hidden if checkpointing else 2 * hidden)
    inside = loops * (1 if checkpointing else reused)
    return FLOAT * tokens * (logits + layers + inside)


def check_sizes(
    model: PreTrainedConfig, config: TrainConfig, plan: BatchPlan, piecewise: bool = False
) -> int:
    """Refuse a run that can't fit into this machine's memory.

    Args:
        model: of which the run's model will be.
        config: the run.
        plan: how its windows are spread.
        piecewise: no process builds it whole.

    Returns:
        Bytes of one checkpoint, about.

    Raises:
        ResourceError: with what is needed and what there is.
    """
    parameters = parameter_count(model)
    tokens = plan.micro_batch * config.data.seq_len
    kept = activation_bytes(model, tokens, config.run.gradient_checkpointing)
    step = TOKEN * config.run.tokens_per_batch // plan.world_size
    readers = READER * config.run.dataloader_num_workers
    check_memory(step, f"run.tokens_per_batch={config.run.tokens_per_batch:,}", "lower it")
    check_memory(
        readers,
        f"run.dataloader_num_workers={config.run.dataloader_num_workers:,}",
        "lower it; 0 reads in the training process",
    )
    what = f"a model of {parameters:,} parameters in {model.num_hidden_layers:,} layers"
    remedy = "choose smaller sizes"
    shares = shares_of(config.parallel, plan.world_size)
    built = parameters // shares if piecewise else parameters
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's word for a machine's processes
    check_memory(FLOAT * built, what, remedy, processes=beside)  # in main memory
    activations = (
        f"{what}, trained on {tokens:,} tokens at once (per_device_train_batch_size × seq_len),"
    )
    remedy = f"{remedy}, or a smaller batch"
    needed = TRAINED * parameters // shares + kept
    if config.run.use_cpu or not torch.cuda.is_available():
        check_memory(needed + step + readers, activations, remedy, processes=beside)
    else:
        check_memory(needed, activations, remedy, "cuda")
    return STORED * parameters
