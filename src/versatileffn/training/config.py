"""What a training run is made of: one validated record, written by people as YAML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from versatileffn.errors import ConfigError
from versatileffn.execution.select import Execution
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.values import suggestion
from versatileffn.training.architecture import Architecture
from versatileffn.training.config_file import (
    Count,
    Positive,
    Section,
    UserPath,
    apply_overrides,
    read_yaml,
    validate,
)
from versatileffn.training.optim_config import OptimSection
from versatileffn.training.parallel import ParallelSection, shards

MOVED = {"execution": "run.execution", "tau": "optim.tau"}
"""Keys that `model.ffn` had while they were taken for parts of a model."""


def _ffn(value: Any) -> FFNConfig | None:
    """A variant's record from a mapping of its knobs."""
    for name in MOVED if isinstance(value, dict) else ():
        if name in value:
            raise ValueError(f"{name!r} is no part of a model: set {MOVED[name]}")
    try:
        known = value is None or isinstance(value, FFNConfig)
        return value if known else FFNConfig.from_dict(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


FFN = Annotated[
    FFNConfig | None,
    PlainValidator(_ffn),
    PlainSerializer(lambda ffn: ffn and ffn.to_dict()),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "null"}]}),
]
"""One of the records of `ffn/config.py`, written as a mapping."""


class ModelSection(Section):
    """Where the weights come from: a checkpoint, or an architecture to initialise."""

    init_from: UserPath | None = None
    """Checkpoint folder or hub id to start from; optimizer state is not taken over."""
    architecture: Architecture | None = None
    """Family and sizes of a model from scratch."""
    ffn: FFN = None
    """A variant and its knobs. Left out: a plain dense model from scratch, or the checkpoint's own
    FFN. Given with a dense checkpoint: it is upcycled first."""
    imports: list[str] = Field([])
    """Python modules, or .py files, of your own to run first: controllers that register
    themselves."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSection":
        if (self.init_from is None) == (self.architecture is None):
            raise ValueError("give exactly one of init_from and architecture; null leaves one out")
        return self


class DataSection(Section):
    """Which tokens are read, in windows of which length."""

    tokens: UserPath
    """Token folder, written by `versatileffn tokenize`."""
    seq_len: int = Field(ge=2, le=2**40)
    """Length of one window, in tokens."""
    repetition_filter: bool = False
    """Windows that hold a sequence of 1 to 13 tokens 32 times in a row count in no loss, as in the
    paper's release; the log has their share."""


class RunSection(Section):
    """How long, how often, how large, and where to."""

    output_dir: UserPath
    """Run folder. An unfinished run in it is resumed."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seeds weights, data order and noise."""
    max_steps: Count | None = None
    """Length of the run, in optimizer steps."""
    num_train_epochs: Positive | None = None
    """Length of the run, in passes over the training windows."""
    schedule_steps: Count | None = None
    """Steps over which learning rate and τ follow their schedules; afterwards both stay where they
    ended. Null is the whole run. A finished run goes on when it is given more max_steps and, here,
    the steps that it had."""
    tokens_per_batch: Count
    """Tokens of one optimizer step over all processes (a multiple of seq_len)."""
    per_device_train_batch_size: Count = 8
    """Windows that one process takes at once; the rest is accumulated."""
    per_device_eval_batch_size: Count = 8
    """Held-out windows that one process takes at once."""
    bf16: bool = False
    """bfloat16 autocast; weights and optimizer stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    execution: Execution = "auto"
    """How reused FFNs compute: the results differ by rounding."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""
    use_cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""
    dataloader_num_workers: int = Field(0, ge=0)
    """Processes that read windows ahead; 0 reads in the training process."""
    eval_steps: Count = 250
    """Optimizer steps between held-out evaluations."""
    eval_windows: Count | None = None
    """Held-out windows per evaluation, from the first; null means all."""
    save_steps: Count = 250
    """Optimizer steps between checkpoints."""
    save_total_limit: Count = 2
    """Newest checkpoints that are kept."""
    logging_steps: Count = 10
    """Optimizer steps between log lines; the loss is their mean."""
    deadline: Positive | None = None
    """Seconds after which the run saves and ends, once its step is done, as at SIGUSR1 (exit code
    138); the same command goes on. Null is no limit."""
    report_to: list[str] = Field(["tensorboard"])
    """Trackers that Transformers knows by name, or []."""

    @model_validator(mode="after")
    def _consistent(self) -> "RunSection":
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError("give exactly one of max_steps and num_train_epochs")
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps={self.save_steps} is not a multiple of logging_steps="
                f"{self.logging_steps}: a resumed run could not log the same losses"
            )
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                meant = suggestion(name, list(INTEGRATION_TO_CALLBACK))
                raise ValueError(f"report_to: unknown tracker {name!r}; {meant}")
        return self


class EvalSection(Section):
    """Which tasks are scored along the run."""

    tasks: list[str] = Field(min_length=1)
    """Labels of tasks, as `versatileffn evaluate` knows them."""
    tasks_limit: Count | None = None
    """Items of each task, from the first; null means all."""
    every_steps: Count
    """Optimizer steps between evaluations, each with a held-out loss beside it; the last step
    always has one."""


class TrainConfig(Section):
    """Everything that defines a training run; see `configs/` for complete examples."""

    model: ModelSection
    data: DataSection
    optim: OptimSection
    run: RunSection
    eval: EvalSection | None = None
    """Left out: no tasks, the loss alone."""
    parallel: ParallelSection | None = None
    """Left out: several processes each hold the whole model (ddp)."""

    @model_validator(mode="after")
    def _whole_windows(self) -> "TrainConfig":
        if self.run.tokens_per_batch % self.data.seq_len:
            raise ValueError(
                f"run.tokens_per_batch={self.run.tokens_per_batch} is not a multiple of "
                f"data.seq_len={self.data.seq_len}: a step consists of whole windows"
            )
        if shards(self.parallel) and self.run.torch_compile:
            raise ValueError(
                "run.torch_compile and parallel.strategy=fsdp2 exclude each other: compile with "
                "ddp, or leave it out"
            )
        if self.optim.consistency is not None and self.run.gradient_checkpointing:
            raise ValueError(
                "optim.consistency and run.gradient_checkpointing exclude each other: layers that "
                "are run again in the backward pass no longer know their budget"
            )
        if self.optim.consistency is not None and self.optim.sampled_loops is not None:
            raise ValueError(
                "optim.consistency and optim.sampled_loops exclude each other: where depths are "
                "drawn by lot, no exit is the one to agree with"
            )
        return self

    @property
    def windows_per_batch(self) -> int:
        """Windows of one optimizer step over all processes."""
        return self.run.tokens_per_batch // self.data.seq_len


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a run's YAML file and apply `key=value` overrides to it.

    Args:
        path: YAML file with the sections of `TrainConfig`. Paths in it are relative to the
            current directory.
        overrides: `section.key=value`, the value in YAML (`null` removes it); later ones win.

    Raises:
        ConfigError: the file can't be read, a key is unknown (the nearest valid one is named),
            or a value is out of range (its key path is named).
    """
    values = apply_overrides(read_yaml(path), overrides)
    return validate(TrainConfig, values, str(path))
