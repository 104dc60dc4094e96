"""What each stage does: tokenize, train, convert, measure. All they exchange is files.

Each goes on with what an interrupted attempt left in its folder.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from versatileffn.analysis.flops import model_cost
from versatileffn.analysis.reuse import measure_reuse
from versatileffn.data.meta import TokenMeta
from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import DivergedError
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.reproduce.protocol import Arm, Protocol
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
            corpus, target, tokenizer="bpe", vocab_size=protocol.vocab_size, progress=_say
        )
    meta = TokenMeta.load(target)
    return {name: split.tokens for name, split in meta.splits.items()}


def train_phase(
    context: Context, token_budget: int, init_from: Path | None, folder: Path
) -> dict[str, Any]:
    """Train from scratch (the base) or from a checkpoint; resumes what it finds in the folder.

    Returns:
        `tokens_per_second`, and `curve`: (tokens, held-out nats per token) along the phase, from 0
        on. Of an arm that diverged, `diverged`: when and why; it has no model.

    Raises:
        DivergedError: the base diverged, so that there is nothing to continue.
    """
    run = folder / "run"
    try:
        train(train_config(context, folder, token_budget, init_from))
    except DivergedError as error:
        if init_from is None:
            raise
        return {"diverged": f"step {error.step}: {error.reason}"}
    speed = json.loads((run / "run.json").read_text())["tokens_per_second"]
    curve = training_curve(run, context.protocol.batch_tokens)
    return {"tokens_per_second": speed, "curve": curve}


def train_config(
    context: Context, folder: Path, token_budget: int, init_from: Path | None
) -> TrainConfig:
    """The run that a phase of the protocol is, as the `train` verb would read it from a file."""
    protocol = context.protocol
    steps = protocol.steps(token_budget)
    log_every = max(1, steps // (LINES_PER_EVALUATION * protocol.evaluations))
    # Rounded up: rounded down, the last evaluation would lie just before the one at the end.
    evaluate_every = log_every * math.ceil(steps / (protocol.evaluations * log_every))
    return TrainConfig.model_validate(
        {
            "model": {
                "init_from": None if init_from is None else str(init_from),
                "architecture": protocol.architecture if init_from is None else None,
            },
            "data": {"tokens": str(context.tokens), "seq_len": protocol.seq_len},
            "optim": {"learning_rate": protocol.learning_rate},
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


def measure(context: Context, model_folder: Path) -> dict[str, Any]:
    """Everything that the report says about one trained model; little of one that diverged."""
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
    }


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
