"""How the learning rate and batch of a scale were chosen: on text that no result is reported on.

    python -m versatileffn.reproduce.sweep --work runs/tiny-sweep --out results/tiny-sweep.json

The rule, fixed before it is run: of all candidates, take the one whose dense base has the lowest
mean loss over the seeds. The seeds are none of those that are reported, and the loss is measured on
windows of the *train* split that this base doesn't read. Depth and width aren't tried: they are
what a demo allows.
"""

import dataclasses
import itertools
import shlex
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from versatileffn.data.order import window_order
from versatileffn.data.packed import PackedDataset
from versatileffn.errors import ConfigError
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.provenance import machine, versions
from versatileffn.reproduce import steps
from versatileffn.reproduce.protocol import Protocol, protocol
from versatileffn.reproduce.run import cpu_threads
from versatileffn.reproduce.stages import LIBRARIES
from versatileffn.workspace.durable import write_json

LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
BATCH_TOKENS = (512, 1024)
SEEDS = (1000, 1001)
WINDOWS = 256


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is tried: peak learning rate, tokens per step."""

    learning_rate: float
    batch_tokens: int


def candidates() -> Iterator[Candidate]:
    """The whole grid."""
    yield from itertools.starmap(Candidate, itertools.product(LEARNING_RATES, BATCH_TOKENS))


def unread_windows(scale: Protocol, num_windows: int, seed: int) -> list[int]:
    """The last `WINDOWS` train windows in the order of a seed, which its base must not reach.

    Raises:
        ConfigError: the base reads them.
    """
    read = scale.steps(scale.base_tokens) * scale.batch_tokens // scale.seq_len
    if read + WINDOWS > num_windows:
        raise ConfigError(
            f"the base of scale {scale.scale} reads {read} of {num_windows} windows, which leaves "
            f"no {WINDOWS} to choose by: give more text"
        )
    return sorted(window_order(num_windows, seed, 0)[-WINDOWS:].tolist())


def base_loss(scale: Protocol, tokens: Path, work: Path, candidate: Candidate, seed: int) -> float:
    """Train a candidate's base (or take the finished one) and measure it, nats per token."""
    chosen = dataclasses.replace(scale, evaluations=1, **dataclasses.asdict(candidate))
    folder = work / f"rate-{candidate.learning_rate}-batch-{candidate.batch_tokens}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    steps.train_phase(steps.Context(chosen, tokens, seed), chosen.base_tokens, None, folder)
    model = steps.load(folder / "run/model")
    dataset = PackedDataset(tokens, "train", chosen.seq_len)
    windows = unread_windows(chosen, len(dataset), seed)
    return held_out_loss(model, dataset, windows=windows).nats_per_token


def sweep(scale: Protocol, work: Path, corpus: str | None = None) -> dict[str, Any]:
    """Try every candidate with every seed; what was measured and what the rule takes.

    Args:
        scale: whose base is trained.
        work: folder for tokens and runs; what is finished in it isn't done again.
        corpus: text to tokenize; None takes the default corpus.
    """
    work.mkdir(parents=True, exist_ok=True)
    steps.tokenize(scale, corpus, work)
    losses = {
        (candidate, seed): base_loss(scale, work / "tokens", work, candidate, seed)
        for candidate in candidates()
        for seed in SEEDS
    }
    tried = []
    for candidate in candidates():
        by_seed = [losses[candidate, seed] for seed in SEEDS]
        mean = statistics.fmean(by_seed)
        tried.append({**dataclasses.asdict(candidate), "nats": by_seed, "mean_nats": mean})
    return {
        "scale": scale.scale,
        "rule": "lowest mean loss of the base over the seeds, on train windows that it hasn't read",
        "base_tokens": scale.base_tokens,
        "seeds": list(SEEDS),
        "windows": WINDOWS,
        "tried": tried,
        "chosen": min(tried, key=lambda record: record["mean_nats"]),
        "versions": versions(*LIBRARIES),
        "device": machine(),
    }


def main(
    work: Annotated[Path, typer.Option(help="Folder for tokens and runs; continued if there.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    scale: Annotated[str, typer.Option(help="Whose base is trained.")] = "tiny",
) -> None:
    """Choose a scale's learning rate and batch."""
    chosen = protocol(scale)
    with cpu_threads(chosen.threads):
        record = sweep(chosen, work)
    command = shlex.join(["python", "-m", "versatileffn.reproduce.sweep", *sys.argv[1:]])
    write_json(out, {"command": command, **record})
    typer.echo(f"chosen: {record['chosen']}")


if __name__ == "__main__":
    typer.run(main)
