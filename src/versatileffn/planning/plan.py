"""A run's plan: its model, memory and time, from the file that `train` reads.

Legend: B windows of a micro-batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from versatileffn.analysis.efficiency import forms
from versatileffn.analysis.flops import ffn_of
from versatileffn.analysis.training_flops import training_flops
from versatileffn.data.meta import META_FILE, TokenMeta
from versatileffn.errors import ConfigError
from versatileffn.execution.select import Execution, execution_choices, forget_choices
from versatileffn.models.checkpoint import read_config
from versatileffn.models.family import is_reuse, reuse_config
from versatileffn.models.weights import parameter_count
from versatileffn.planning.gpus import Gpu
from versatileffn.planning.step import ACTIVATIONS, LOSS, TEMPORARY, Share, peak_memory
from versatileffn.training.batches import plan_batches
from versatileffn.training.config import TrainConfig
from versatileffn.training.init import model_config
from versatileffn.training.parallel import ParallelSection, Strategy, check_launch, shards

EXECUTIONS: tuple[Execution, ...] = ("auto", "masked", "packed", "recompute")
"""Those that train."""
USABLE = 0.9
"""Share of a GPU's memory that a plan may fill: CUDA's context, NCCL's buffers, kernels' scratch
and what the allocator can't hand out again take the rest."""


@dataclass(frozen=True)
class Mode:
    """How a run saves memory, and what one process then holds at its peak.

    Args:
        execution, gradient_checkpointing, bf16: keys of `run`.
        strategy: how processes share the model.
        parts: bytes by part.
    """

    execution: Execution
    gradient_checkpointing: bool
    bf16: bool
    strategy: Strategy
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.parts.values())

    def fits(self, gpu: Gpu) -> bool:
        """Whether a GPU has as much, with some to spare."""
        return self.peak <= USABLE * gpu.gib * 2**30

    def windows(self, gpu: Gpu, micro_batch: int) -> int:
        """How many windows one process could take at once: at least so many; 0 if not even one.

        What the pass holds is taken to grow with them, though part of it (weights in bfloat16)
        doesn't.
        """
        grows = sum(self.parts.get(part, 0) for part in (ACTIVATIONS, LOSS, TEMPORARY))
        room = USABLE * gpu.gib * 2**30 - (self.peak - grows)
        return max(int(room / (grows / micro_batch)), 0)


@dataclass(frozen=True)
class Form:
    """What training one form of the architecture takes.

    Args:
        name: of the form.
        own: whether it is the config's.
        parameters: of the whole model.
        flops: per token, forward and backward, recomputation left out.
        gpu_hours: of the run.
    """

    name: str
    own: bool
    parameters: int
    flops: float
    gpu_hours: float


class RunPlan:
    """What a configuration asks for, on so many GPUs.

    Args:
        config: as `train` takes it.
        gpus: how many, each with a process.
        mean_loops: of the tokens, where they choose; None is the most, L.

    Attributes:
        model: the config of the model.
        batches: how the run is divided.
        tokens: that it reads.

    Raises:
        ConfigError: the run can't be divided so, or neither it nor its token folder says how large
            the vocabulary is, or how long an epoch.
    """

    def __init__(self, config: TrainConfig, gpus: int, mean_loops: float | None = None) -> None:
        self.config, self.gpus = config, gpus
        meta = _meta(config)
        vocabulary, end = _vocabulary(config, meta)
        self.model = model_config(config.model, vocabulary, end, config.data.seq_len)
        most = ffn_of(self.model).loops
        if mean_loops is not None and not 1 <= mean_loops <= most:
            raise ConfigError(f"--mean-loops={mean_loops:g} must lie in 1 to max_loops={most}")
        if config.optim.consistency is not None:
            raise ConfigError(
                "optim.consistency runs each batch a second time, which isn't planned: leave it "
                "out (--set optim.consistency=null), and count on up to twice the activations"
            )
        self.mean_loops = float(most if mean_loops is None else mean_loops)
        check_launch(config.parallel, gpus)
        self.batches = plan_batches(config, _windows(config, meta), gpus)
        self.tokens = self.batches.max_steps * config.run.tokens_per_batch

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """How processes may share the model, the config's own way first."""
        ways: tuple[Strategy, ...] = ("ddp", "fsdp2")
        ways = ways[::-1] if shards(self.config.parallel) else ways
        return ways if self.gpus > 1 else ways[:1]

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return parameter_count(self.model)

    def mode(self, strategy: Strategy, **changes: Any) -> Mode:
        """Memory under the config's own settings, or with others of `run`."""
        run = self.config.run.model_copy(update=changes)
        told = self.config.parallel
        section = told if told and told.strategy == strategy else ParallelSection(strategy=strategy)
        config = self.config.model_copy(update={"run": run, "parallel": section})
        batches = self.batches
        share = Share(
            batches.micro_batch, config.data.seq_len, batches.accumulation, batches.world_size
        )
        parts = peak_memory(self.model, config, share, self.mean_loops)
        return Mode(run.execution, run.gradient_checkpointing, run.bf16, strategy, parts)

    def modes(self, say: Callable[[str], None] = lambda _: None) -> Iterator[Mode]:
        """Memory in every mode; executions that come to the same are looked at once."""
        known: dict[tuple[Any, ...], Mode] = {}
        executors = {name: self._executors(name) for name in EXECUTIONS}
        for strategy, bf16, again, name in product(
            self.strategies, (True, False), (False, True), EXECUTIONS
        ):
            if executors[name] is None:
                continue
            say(f"{strategy}, {'bf16' if bf16 else 'float32'}, {name}, checkpointing {again}")
            key = (strategy, bf16, again, executors[name])
            settings = {"execution": name, "gradient_checkpointing": again, "bf16": bf16}
            if key not in known:
                known[key] = self.mode(strategy, **settings)
            yield Mode(name, again, bf16, strategy, known[key].parts)

    def _executors(self, execution: Execution) -> frozenset[str] | None:
        """What an execution comes to in training, seen on a few tokens; None: it can't be."""
        if execution != "auto" and not is_reuse(self.model):
            return None
        forget_choices()
        run = self.config.run.model_copy(update={"execution": execution})
        config = self.config.model_copy(update={"run": run})
        try:
            peak_memory(self.model, config, Share(1, 2, 1), self.mean_loops)
        except ConfigError:
            return None
        finally:
            used = frozenset(choice["executor"] for choice in execution_choices())
            forget_choices()
        return used

    def forms(self, gpu: Gpu, utilisation: float) -> list[Form]:
        """What every form of the architecture costs on these tokens.

        Args:
            gpu: whose peak.
            utilisation: share of the peak that the run reaches, 0 to 1.
        """
        own, rows = ffn_of(self.model), []
        rate = gpu.tflops * 1e12 * utilisation * 3600
        for name, ffn, execution in forms(own, self.model.intermediate_size):
            if execution != "auto":
                continue  # the same FLOPs
            form = reuse_config(self.model, ffn)
            mean = min(self.mean_loops, ffn.loops) if ffn.variant == own.variant else None
            flops = training_flops(form, self.config.data.seq_len, mean)
            hours = flops * self.tokens / rate
            rows.append(Form(name, ffn == own, parameter_count(form), flops, hours))
        return rows


def plan_record(plan: RunPlan, gpu: Gpu, forms: list[Form], modes: list[Mode]) -> dict[str, Any]:
    """A plan as plain data, sizes in bytes."""
    return {
        "gpu": asdict(gpu),
        "gpus": plan.gpus,
        "parameters": plan.parameters,
        "tokens": plan.tokens,
        "steps": plan.batches.max_steps,
        "accumulation": plan.batches.accumulation,
        "mean_loops": plan.mean_loops,
        "forms": [asdict(form) for form in forms],
        "modes": [
            asdict(mode)
            | {
                "peak": mode.peak,
                "fits": mode.fits(gpu),
                "windows_at_once": mode.windows(gpu, plan.batches.micro_batch),
            }
            for mode in modes
        ],
    }


def _meta(config: TrainConfig) -> TokenMeta | None:
    """What the token folder says; None where it isn't here."""
    there = (Path(config.data.tokens) / META_FILE).is_file()
    return TokenMeta.load(config.data.tokens) if there else None


def _vocabulary(config: TrainConfig, meta: TokenMeta | None) -> tuple[int, int | None]:
    """Tokens in the vocabulary, and the one that ends a text."""
    if meta is not None:
        return meta.vocab_size, meta.eos_token_id
    section = config.model
    if section.init_from is not None:
        return read_config(section.init_from).vocab_size, None
    assert section.architecture is not None
    if section.architecture.vocab_size is None:
        raise ConfigError(
            f"data.tokens={config.data.tokens} isn't here, and model.architecture has no "
            "vocab_size: write the tokens, or give --set model.architecture.vocab_size=N"
        )
    return section.architecture.vocab_size, None


def _windows(config: TrainConfig, meta: TokenMeta | None) -> int:
    """Of the training split; where only steps count, as many as they need."""
    if meta is not None:
        return max(meta.splits["train"].tokens // config.data.seq_len, 1)
    if config.run.max_steps is None:
        raise ConfigError(
            f"data.tokens={config.data.tokens} isn't here, so nobody knows how long "
            "run.num_train_epochs is: write the tokens, or give run.max_steps"
        )
    return config.run.max_steps * config.windows_per_batch
