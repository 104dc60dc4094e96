"""Small runs whose planned memory is held against the measured: every variant in every mode."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from planning.measure import Measured, measure
from support.launch import torchrun
from training.conftest import write_tokens
from versatileffn.planning.plan import EXECUTIONS, RunPlan
from versatileffn.training.config import TrainConfig

VOCABULARY, SEQ_LEN = 512, 128
WITHIN = 0.1
"""Of the measured peak."""
VARIANTS = ("dense", "versatile", "k-loop", "moe")


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        variant: of the FFN.
        execution, gradient_checkpointing, bf16: keys of `run`.
        ranks: processes, of gloo.
        strategy: how they share the model.
    """

    variant: str
    execution: str
    gradient_checkpointing: bool
    bf16: bool
    ranks: int = 1
    strategy: str = "ddp"

    def __str__(self) -> str:
        parts = [self.variant, self.execution]
        parts += ["checkpointing"] * self.gradient_checkpointing + ["bf16"] * self.bf16
        return "-".join(parts + [self.strategy] * (self.ranks > 1))


def all_cases() -> Iterator[Case]:
    """A dense model has no executor to choose, and real experts run beside any."""
    for variant, execution, again, bf16 in product(
        VARIANTS, EXECUTIONS, (False, True), (False, True)
    ):
        if execution == "auto" or variant in ("versatile", "k-loop"):
            yield Case(variant, execution, again, bf16)
    several = [("versatile", "ddp"), *((each, "fsdp2") for each in ("versatile", "dense", "moe"))]
    for (variant, strategy), again, bf16 in product(several, (False, True), (False, True)):
        yield Case(variant, "auto", again, bf16, 2, strategy)


def make_config(case: Case, place: Path, **run: Any) -> TrainConfig:
    """A run of two steps, of two micro-batches each."""
    tokens = place / "tokens"
    if not tokens.exists():
        write_tokens(tokens, vocab=VOCABULARY)
    ffn = {} if case.variant == "dense" else {"ffn": {"variant": case.variant}}
    values = {
        "model": {
            "architecture": {
                "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
                "num_attention_heads": 4,
            },
            **ffn,
        },
        "data": {"tokens": str(tokens), "seq_len": SEQ_LEN},
        "optim": {"learning_rate": 1e-3},
        "run": {
            "output_dir": str(place / str(case)), "max_steps": 2, "use_cpu": True,
            "tokens_per_batch": 8 * SEQ_LEN * case.ranks, "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 1, "eval_windows": 1, "eval_steps": 2, "save_steps": 2,
            "logging_steps": 1, "report_to": [], "execution": case.execution,
            "gradient_checkpointing": case.gradient_checkpointing, "bf16": case.bf16,
        } | run,
        "parallel": {"strategy": case.strategy},
    }  # fmt: skip
    return TrainConfig.model_validate(json.loads(json.dumps(values)))


def compare(case: Case, place: Path) -> dict[str, Any]:
    """Measure, plan, and put both beside each other."""
    config = make_config(case, place)
    measured = measure(config) if case.ranks == 1 else _measure_ranks(config, case.ranks, place)
    mean_loops = measured.mean_loops if case.variant == "versatile" else None
    planned = RunPlan(config, case.ranks, mean_loops).mode(config.parallel.strategy)
    return asdict(case) | {
        "mean_loops": mean_loops,
        "measured": measured.peak,
        "planned": planned.peak,
        "parts": planned.parts,
        "ratio": planned.peak / measured.peak,
    }


def _measure_ranks(config: TrainConfig, ranks: int, place: Path) -> Measured:
    """What the first of several processes took."""
    file = place / "run.yaml"
    file.write_text(config.model_dump_json(exclude_unset=True))  # JSON is YAML
    done = torchrun(file, ranks=ranks, script=Path(__file__).with_name("measure.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return Measured(**json.loads(found))
