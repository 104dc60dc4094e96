"""What each stage of the depth experiment does; all they exchange is files."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from versatileffn.analysis.reuse import measure_reuse
from versatileffn.budget import each_cap
from versatileffn.errors import DivergedError
from versatileffn.ffn.config import Dense, Versatile
from versatileffn.models.checkpoint import without_progress_bars
from versatileffn.reproduce.depth import controller
from versatileffn.reproduce.depth.arm import REUSED, DepthArm
from versatileffn.reproduce.depth.protocol import DepthProtocol
from versatileffn.reproduce.depth.scores import DepthScores, answer
from versatileffn.reproduce.depth.task import TEST, VALIDATION, DepthTask
from versatileffn.reproduce.depth.tokens import write_questions
from versatileffn.reproduce.results import finite
from versatileffn.reproduce.steps import load
from versatileffn.training.architecture import Architecture, architecture_config
from versatileffn.training.config import TrainConfig
from versatileffn.training.evaluation import PREFIX
from versatileffn.training.init import new_model, truncated_init
from versatileffn.training.run import train
from versatileffn.training.telemetry import learned_gains
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.folder import new_folder, tidy
from versatileffn.workspace.manifest import FILES, digests

START = "start.json"
RATE = "rate.json"
EMBEDDING = "embed_tokens"
ALL_BUT_CONTROLLERS = "^(?!.*controller)"


def ask(protocol: DepthProtocol, seed: int, opens_k: float | None, folder: Path) -> dict[str, Any]:
    """Write the questions of one seed to `folder/tokens`: one pass over what is trained on."""
    target = folder / "tokens"
    if target.exists():
        tidy(target, published=True)
    else:
        count = protocol.steps * protocol.batch
        task = protocol.task
        splits = {
            "train": task.stream(count, seed, opens_k),
            "val": task.held_out(VALIDATION),
        }
        write_questions(task, splits, seed, target)
    return {}


def start(protocol: DepthProtocol, seed: int, d_hidden: int, folder: Path) -> dict[str, Any]:
    """Make `folder/model`: a dense Llama with the embedding that is given, otherwise untrained."""
    target = folder / "model"
    if target.exists():
        tidy(target, published=True)
        return {}
    sizes = {
        "hidden_size": protocol.d_model,
        "intermediate_size": d_hidden,
        "num_hidden_layers": protocol.num_layers,
        "num_attention_heads": protocol.num_heads,
        "initializer_range": protocol.init,
        "tie_word_embeddings": True,
    }
    vocabulary = protocol.task.vocabulary
    architecture = Architecture.model_validate(sizes)
    config = architecture_config(
        architecture, None, len(vocabulary), vocabulary.index(vocabulary[-1]), protocol.task.window
    )
    model: Any = new_model(config)
    truncated_init(model, protocol.init, seed)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(protocol.task.embedding(protocol.d_model, seed))
    with new_folder(target, START) as new:
        model.save_pretrained(new)
        write_json(new / START, {FILES: digests(new)})
    return {}


def train_arm(
    protocol: DepthProtocol,
    arm: DepthArm,
    seed: int,
    rate: float | Path,
    tokens: Path,
    model: Path,
    folder: Path,
) -> dict[str, Any]:
    """Train an arm from `model` on the questions in `tokens`.

    Args:
        rate: peak learning rate, or the file that says which was chosen.

    Returns:
        `course`: (step, exact by k, loops by k or None) along training, on validation states, of
        the fit where controllers are fitted; and `rate`. Of an arm that diverged, `diverged`: when
        and why.
    """
    peak = json.loads(rate.read_text())["rate"] if isinstance(rate, Path) else rate
    config = train_config(protocol, arm, seed, peak, tokens, model, folder)
    try:
        with without_progress_bars():
            for part in (config,) if arm.fit is None else fitted(config, arm.fit, folder):
                train(part, DepthScores(protocol.task))
    except DivergedError as error:
        return {"rate": peak, "diverged": f"step {error.step}: {error.reason}", "course": []}
    return {"rate": peak, "course": course(folder / "run" / "log.jsonl")}


def fitted(config: TrainConfig, share: float, folder: Path) -> tuple[TrainConfig, TrainConfig]:
    """A run as two: elsewhere in the folder first, and then its controllers alone.

    Args:
        config: the run whose controllers aren't asked.
        share: further steps, as a share of its own.
        folder: in which both leave their run folders.
    """
    before = str(folder / "before")
    first, second = config.model_dump(), config.model_dump()
    first["run"]["output_dir"] = before
    second["model"] |= {"init_from": f"{before}/model", "ffn": None}
    second["optim"] |= {"frozen": [ALL_BUT_CONTROLLERS], "sampled_loops": None}
    assert config.run.max_steps is not None
    second["run"]["max_steps"] = max(1, round(share * config.run.max_steps))
    return TrainConfig.model_validate(first), TrainConfig.model_validate(second)


def train_config(
    protocol: DepthProtocol,
    arm: DepthArm,
    seed: int,
    rate: float,
    tokens: Path,
    model: Path,
    folder: Path,
) -> TrainConfig:
    """The run that an arm is, as the `train` verb would read it from a file."""
    every = max(1, protocol.steps // protocol.evaluations)
    dense = isinstance(arm.ffn, Dense)
    opens = None if arm.opens_loops is None else {"share": arm.opens_loops}
    return TrainConfig.model_validate(
        {
            "model": {
                "init_from": str(model),
                "ffn": None if dense else arm.ffn.to_dict(),
                "imports": [controller.__name__] if _prescribed(arm) else [],
            },
            "data": {"tokens": str(tokens), "seq_len": protocol.task.window},
            "optim": {
                "learning_rate": rate,
                "frozen": [EMBEDDING],
                "loop_curriculum": opens,
                **arm.optim,
            },
            "run": {
                "output_dir": str(folder / "run"),
                "seed": seed,
                "max_steps": protocol.steps,
                "tokens_per_batch": protocol.batch * protocol.task.window,
                "per_device_train_batch_size": protocol.batch,
                "per_device_eval_batch_size": 1024,
                "eval_steps": every,
                "save_steps": every * protocol.evaluations,
                "save_total_limit": 1,
                "logging_steps": every,
                "report_to": [],
            },
            "eval": {"tasks": ["depth"], "every_steps": every},
        }
    )


def _prescribed(arm: DepthArm) -> bool:
    return isinstance(arm.ffn, Versatile) and arm.ffn.controller == controller.PRESCRIBED


def course(log: Path) -> list[dict[str, Any]]:
    """What was scored along a run, from its log."""
    found = []
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        scores = {n.removeprefix(PREFIX): v for n, v in entry.items() if n.startswith(PREFIX)}
        if scores:
            found.append({"step": entry["step"], **_by_k(scores)})
    return found


def _by_k(scores: Mapping[str, float]) -> dict[str, Any]:
    """`exact` and `loops` as lists over k."""
    ks = range(sum(name.startswith("exact_") for name in scores))
    loops = [scores[f"loops_{k}"] for k in ks] if "loops_0" in scores else None
    return {"exact": [scores[f"exact_{k}"] for k in ks], "loops": loops}


def choose(rates: Mapping[float, Path], folder: Path) -> dict[str, Any]:
    """Choose the rate whose run ended best, and write it to `folder/rate.json`.

    Args:
        rates: the log of each rate's run, in the order in which ties are decided.
    """
    found = {}
    for rate, log in rates.items():
        ended = course(log) if log.exists() else []
        found[rate] = sum(ended[-1]["exact"]) / len(ended[-1]["exact"]) if ended else -1.0
    best = max(found, key=lambda rate: found[rate])  # the first of several
    tried = [{"rate": rate, "exact": exact} for rate, exact in found.items()]
    write_json(folder / RATE, {"rate": best, "tried": tried})
    return {"rate": best, "tried": tried}


def measure(
    protocol: DepthProtocol, arm: DepthArm, model_folder: Path, folder: Path
) -> dict[str, Any]:
    """What the report says of one trained model, on test states; nothing if it diverged."""
    if not model_folder.exists():
        return {}
    model: Any = load(model_folder)
    windows = protocol.task.held_out(TEST)
    given = answer(model, protocol.task, windows)
    questions = torch.from_numpy(windows[:, :-1])
    reuse = measure_reuse(model, [questions])
    embedding = model.get_input_embeddings().weight.numel()
    layer = reuse.layers[REUSED] if reuse.layers else None
    return finite(
        {
            "exact": given.exact,
            "loops": given.mean_loops,
            "rank_correlation": given.rank_correlation,
            "text_loss": given.text_loss,
            "text_loops": given.text_loops,
            "caps": _caps(model, protocol.task, arm),
            "gains": learned_gains(model),
            "parameters": model.num_parameters() - embedding,
            "flops_executed": reuse.executed_flops,
            "flops_controller": reuse.controller_flops,
            "layer": None if layer is None else dataclasses.asdict(layer),
        }
    )


def _caps(model: Any, task: DepthTask, arm: DepthArm) -> dict[str, list[float]] | None:
    """Exact match by k under each cap on the loops, where the model decides them."""
    if not isinstance(arm.ffn, Versatile):
        return None
    return {str(cap): answer(model, task, task.held_out(TEST)).exact for cap in each_cap(model)}
