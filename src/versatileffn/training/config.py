"""What a training run is made of: one validated record, written by people as YAML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from versatileffn.errors import ConfigError
from versatileffn.execution.select import Execution
from versatileffn.ffn.config import FFNConfig
from versatileffn.ffn.values import suggestion
from versatileffn.training.architecture import Architecture
from versatileffn.training.config_file import (
    Section,
    UserPath,
    apply_overrides,
    read_yaml,
    validate,
)

MOST = 2**40  # of any count of steps, windows or tokens
TAU_PRESETS: dict[str, dict[str, float]] = {
    "paper": {"start": 5.0, "end": 0.1, "anneal_fraction": 0.96},
    "as-released": {"start": 5.0, "end": 5.0, "anneal_fraction": 0.96},
}


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

    init_from: UserPath | None = Field(
        None,
        description="Checkpoint folder or hub id to start from; optimizer state is not taken over.",
    )
    architecture: Architecture | None = Field(
        None, description="Family and sizes of a model from scratch."
    )
    ffn: FFN = Field(
        None,
        description="A variant and its knobs. Left out: a plain dense model from scratch, or the "
        "checkpoint's own FFN. Given with a dense checkpoint: it is upcycled first.",
    )
    imports: list[str] = Field(
        default=[],
        description="Python modules, or .py files, of your own to run first: controllers that "
        "register themselves.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSection":
        if (self.init_from is None) == (self.architecture is None):
            raise ValueError("give exactly one of init_from and architecture; null leaves one out")
        return self


class DataSection(Section):
    """Which tokens are read, in windows of which length."""

    tokens: UserPath = Field(description="Token folder, written by `versatileffn tokenize`.")
    seq_len: int = Field(ge=2, le=MOST, description="Length of one window, in tokens.")


class TauSection(Section):
    """How the temperature of the loop choice falls (versatile FFNs only)."""

    start: float = Field(5.0, gt=0, description="τ at the first step (dimensionless).")
    end: float = Field(0.1, gt=0, description="τ once annealed (dimensionless).")
    anneal_fraction: float = Field(
        0.96, gt=0, le=1, description="Share of the schedule over which τ is annealed (0 to 1)."
    )


def _tau_preset(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in TAU_PRESETS:
        raise ValueError(
            f"unknown preset {value!r}: choose one of {list(TAU_PRESETS)} or a mapping"
        )
    return TAU_PRESETS[value]


class OptimSection(Section):
    """AdamW and its schedule; the defaults are the paper's."""

    learning_rate: float = Field(gt=0, description="Peak learning rate (per step, dimensionless).")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the gradient's mean per step.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="Decay of its square's mean per step.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to the denominator (gradient unit).")
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="Decoupled decay, per unit of learning rate; embeddings included, "
        "norms, biases and reuse gains exempt.",
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients are scaled down to this global L2 norm."
    )
    warmup_ratio: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the schedule in which the rate rises (0 to 1).",
    )
    min_lr_rate: float = Field(
        0.1, ge=0, le=1, description="Final learning rate as a share of the peak (0 to 1)."
    )
    tau: Annotated[TauSection, BeforeValidator(_tau_preset)] = Field(
        default=TauSection(),  # type: ignore[call-arg]
        description="Temperature schedule: a mapping, or the preset `paper` or `as-released`.",
    )


class RunSection(Section):
    """How long, how often, how large, and where to."""

    output_dir: UserPath = Field(description="Run folder. An unfinished run in it is resumed.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seeds weights, data order and noise.")
    max_steps: int | None = Field(
        None, ge=1, le=MOST, description="Length of the run, in optimizer steps."
    )
    num_train_epochs: float | None = Field(
        None, gt=0, description="Length of the run, in passes over the training windows."
    )
    schedule_steps: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Steps over which learning rate and τ follow their schedules; afterwards both "
        "stay where they ended. Null is the whole run. A finished run goes on when it is given "
        "more max_steps and, here, the steps that it had.",
    )
    tokens_per_batch: int = Field(
        ge=1,
        le=MOST,
        description="Tokens of one optimizer step over all processes (a multiple of seq_len).",
    )
    per_device_train_batch_size: int = Field(
        8,
        ge=1,
        le=MOST,
        description="Windows that one process takes at once; the rest is accumulated.",
    )
    per_device_eval_batch_size: int = Field(
        8, ge=1, le=MOST, description="Held-out windows that one process takes at once."
    )
    bf16: bool = Field(False, description="bfloat16 autocast; weights and optimizer stay float32.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    execution: Execution = Field(
        "auto", description="How reused FFNs compute: the results differ by rounding."
    )
    torch_compile: bool = Field(False, description="Compile the model with torch.compile.")
    use_cpu: bool = Field(False, description="Stay on the CPU even where there is an accelerator.")
    dataloader_num_workers: int = Field(
        0, ge=0, description="Processes that read windows ahead; 0 reads in the training process."
    )
    eval_steps: int = Field(
        250, ge=1, le=MOST, description="Optimizer steps between held-out evaluations."
    )
    eval_windows: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Held-out windows per evaluation, from the first; null means all.",
    )
    save_steps: int = Field(250, ge=1, le=MOST, description="Optimizer steps between checkpoints.")
    save_total_limit: int = Field(2, ge=1, le=MOST, description="Newest checkpoints that are kept.")
    logging_steps: int = Field(
        10, ge=1, le=MOST, description="Optimizer steps between log lines; the loss is their mean."
    )
    report_to: list[str] = Field(
        default=["tensorboard"], description="Trackers that Transformers knows by name, or []."
    )

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

    tasks: list[str] = Field(
        min_length=1, description="Labels of tasks, as `versatileffn evaluate` knows them."
    )
    tasks_limit: int | None = Field(
        None, ge=1, le=MOST, description="Items of each task, from the first; null means all."
    )
    every_steps: int = Field(
        ge=1,
        le=MOST,
        description="Optimizer steps between evaluations, each with a held-out loss beside it; "
        "the last step always has one.",
    )


class TrainConfig(Section):
    """Everything that defines a training run; see `configs/` for complete examples."""

    model: ModelSection
    data: DataSection
    optim: OptimSection
    run: RunSection
    eval: EvalSection | None = Field(None, description="Left out: no tasks, the loss alone.")

    @model_validator(mode="after")
    def _whole_windows(self) -> "TrainConfig":
        if self.run.tokens_per_batch % self.data.seq_len:
            raise ValueError(
                f"run.tokens_per_batch={self.run.tokens_per_batch} is not a multiple of "
                f"data.seq_len={self.data.seq_len}: a step consists of whole windows"
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
