"""`versatileffn analyze`: see where a model thinks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from versatileffn.cli.options import DeviceOption, choose_device
from versatileffn.cli.record import LIBRARIES, command_line
from versatileffn.cli.table import print_table
from versatileffn.provenance import device_name, versions
from versatileffn.workspace.durable import write_bytes, write_json, writing
from versatileffn.workspace.folder import check_free, new_folder
from versatileffn.workspace.manifest import digests

if TYPE_CHECKING:
    from versatileffn.analysis.outcome import Outcome
    from versatileffn.analysis.readings import Reading

RECORD = "analysis.json"


class View(StrEnum):
    """What to look at."""

    LOOPS = "loops"
    WORDS = "words"
    SIMILARITY = "similarity"
    TOKENS = "tokens"


@dataclass(frozen=True)
class Job:
    """What to look at, loaded."""

    name: str
    model: Any
    sequences: list[list[int]]
    source: str
    layer: int
    min_count: int

    @property
    def tokenizer(self) -> Any:
        """The model's own."""
        from versatileffn.models.tokenizer import load_own_tokenizer

        return load_own_tokenizer(self.name)


def analyze_command(
    view: Annotated[View, typer.Argument(help="What to look at.")],
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder, hub id or .gguf file.")],
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Texts, as `versatileffn tokenize` takes them, or its token folder."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Read a task's prompts; arc_challenge is the paper's.", metavar="NAME"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write.", show_default="analysis/VIEW"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first so many windows of each text, or items."),
    ] = None,
    layer: Annotated[int, typer.Option(min=1, help="words: whose decisions; 1-based.")] = 1,
    min_count: Annotated[
        int, typer.Option(min=1, help="words: leave out those that occur less often.")
    ] = 3,
    device: DeviceOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if all in it is this verb's.")
    ] = False,
) -> None:
    """Where a model loops, over which words, how its pathways differ: pictures and their data.

    Texts are read in windows as long as the model takes, each on its own. Of real experts `words`
    and `tokens` show the routing, of a k-loop `similarity` compares the loops.
    """
    import torch
    from rich.console import Console
    from transformers import AutoModelForCausalLM

    from versatileffn.analysis.texts import sequences_of
    from versatileffn.evaluation.tasks.loading import model_sha256
    from versatileffn.models.checkpoint import load_checkpoint, read_any_config

    out = out or Path("analysis") / view.value
    check_free(out, RECORD, overwrite, source=model)
    config = read_any_config(model)
    loaded = load_checkpoint(AutoModelForCausalLM, model, config, dtype=torch.float32)
    loaded = loaded.to(choose_device(device)).eval()
    sequences = sequences_of(model, loaded, text or [], task, limit)
    with Console(stderr=True).status("reading"):
        source = task or ", ".join(Path(each).name for each in text or [])
        outcome = VIEWS[view](Job(model, loaded, sequences, source, layer, min_count))
    head = {
        "verb": "analyze",
        "view": view.value,
        "command": command_line(),
        "versions": versions(*LIBRARIES),
        "device": device_name(loaded.device),
        "model": model,
        "model_sha256": model_sha256(loaded),
        "read": text or task,
        "limit": limit,
        "tokens": sum(map(len, sequences)),
    }
    _write(out, overwrite, head, outcome)
    print_table(outcome.title, outcome.table)
    for note in outcome.notes:
        typer.echo(note)
    typer.echo(f"written to {out}: {', '.join([*outcome.files, RECORD])}")


def _write(out: Path, overwrite: bool, head: dict[str, Any], outcome: "Outcome") -> None:
    with new_folder(out, RECORD, overwrite) as folder, writing(out):
        for name, content in outcome.files.items():
            write_bytes(folder / name, content)
        found = {"found": outcome.record, "files": digests(folder)}
        write_json(folder / RECORD, head | found)


def _loops(job: Job) -> "Outcome":
    from versatileffn.analysis.loop_profile import loop_profile, loops_outcome
    from versatileffn.analysis.reuse import unpadded_batches

    return loops_outcome(loop_profile(job.model, unpadded_batches(job.sequences)))


def _words(job: Job) -> "Outcome":
    from versatileffn.analysis.expert_words import expert_words_outcome, words_by_expert
    from versatileffn.analysis.readings import expert_loads, loops_decided
    from versatileffn.analysis.words import ranked_words, words_outcome

    readings, of = _readings(job), (job.tokenizer, job.layer, job.min_count)
    if loops_decided(readings):
        return words_outcome(ranked_words(readings, *of), job.layer)
    words = words_by_expert(readings, *of)
    return expert_words_outcome(words, expert_loads(readings, job.layer), job.layer)


def _similarity(job: Job) -> "Outcome":
    from versatileffn.analysis.flops import ffn_of
    from versatileffn.analysis.loop_moves import depth_alone, loop_moves_outcome, measure_loops
    from versatileffn.analysis.pathways import measure_pathways, similarity_outcome
    from versatileffn.analysis.reuse import unpadded_batches
    from versatileffn.analysis.token_texts import token_texts

    batches = unpadded_batches(job.sequences)
    if depth_alone(ffn_of(job.model.config)):
        moves, states, longest = measure_loops(job.model, batches)
        return loop_moves_outcome(moves, states, token_texts(job.tokenizer, longest))
    means, shown, longest = measure_pathways(job.model, batches)
    return similarity_outcome(means, shown, token_texts(job.tokenizer, longest))


def _tokens(job: Job) -> "Outcome":
    from versatileffn.analysis.token_page import tokens_outcome

    name = Path(job.name).name
    return tokens_outcome(_readings(job), job.tokenizer, name, job.source)


def _readings(job: Job) -> "Sequence[Reading]":
    from versatileffn.analysis.readings import read

    return read(job.model, job.sequences)


VIEWS: dict[View, Callable[[Job], "Outcome"]] = {
    View.LOOPS: _loops,
    View.WORDS: _words,
    View.SIMILARITY: _similarity,
    View.TOKENS: _tokens,
}
