"""`reproduce`: run the stages, gather what they measured, write the report."""

import datetime
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from versatileffn.data.meta import TokenMeta
from versatileffn.errors import ConfigError, DataError
from versatileffn.models.checkpoint import without_progress_bars
from versatileffn.provenance import machine, versions
from versatileffn.reproduce.arms import THE_BASE
from versatileffn.reproduce.budgets import under_budgets
from versatileffn.reproduce.figures import draw_all
from versatileffn.reproduce.parallel import check_counts, cpu_threads, run_at_once
from versatileffn.reproduce.plan import TOKENS, build_stages
from versatileffn.reproduce.progress import Progress
from versatileffn.reproduce.protocol import Protocol
from versatileffn.reproduce.report import write_report
from versatileffn.reproduce.results import CONTROL, FORMAT, Row, finite, row_from_json, summarize
from versatileffn.reproduce.rulers import comparisons
from versatileffn.reproduce.stages import (
    LIBRARIES,
    MARKER,
    Outcome,
    StageRunner,
    held,
    sources,
)
from versatileffn.workspace.durable import write_json, writing


def reproduce(
    protocol: Protocol,
    out: Path,
    seeds: int = 1,
    tokens: Path | None = None,
    corpus: str | None = None,
    command: str = "versatileffn.reproduce.run.reproduce",
    accept_sources: Sequence[str] = (),
    only_finished: bool = False,
    workers: int = 1,
) -> Path:
    """Run the paper's protocol at one scale, or what is missing of it, and write the report.

    Source: the protocol of arXiv 2512.14531.

    Args:
        protocol: the experiment.
        out: folder for everything; one that an earlier run left is continued.
        seeds: independent repetitions (seeds 0, 1, …), each with a base of its own.
        tokens: token folder to use instead of tokenizing.
        corpus: text to tokenize; None takes the default corpus.
        command: what the report says it was made by.
        accept_sources: digests (`source_sha256`) of other versions of this package whose finished
            stages are taken as they are; the results say which made what.
        only_finished: run nothing; report what is there and what is missing, also while another
            run is at work in the folder.
        workers: processes, each with one CPU thread; results don't depend on how many. Several
            import the calling program, whose work must stand below `if __name__ == "__main__":`.

    Returns:
        Path of the HTML report; `report.md`, `results.json` and `figures/` lie beside it.

    Raises:
        ConfigError: `seeds` or `workers` make no sense, or `out` holds something else; or there
            are workers for what isn't done with one CPU thread.
        DataError: the corpus or token folder can't be used, or nothing is finished where only that
            was asked for.
    """
    check_counts(seeds, workers)
    if workers > 1 and (only_finished or protocol.threads != 1):
        raise ConfigError(
            f"workers={workers} are for training with one CPU thread each, and scale="
            f"{protocol.scale}{' with only_finished' * only_finished} doesn't: leave them out"
        )
    if tokens is not None and corpus is not None:
        raise ConfigError("both a token folder and a corpus are given: leave one out")
    inside = corpus is not None and Path(corpus).resolve() in (
        out.resolve(),
        *out.resolve().parents,
    )
    if inside:
        raise ConfigError(f"{out} lies inside the corpus {corpus}: choose another output")
    if only_finished and not (out / MARKER).exists():
        raise ConfigError(f"{out} is no folder of `versatileffn reproduce`: name one in --out")
    stages = build_stages(protocol, out, seeds, tokens, corpus)
    ours = nullcontext() if only_finished else held(out)  # nothing is run beside a run
    with ours, without_progress_bars(), cpu_threads(protocol.threads):
        if workers > 1:
            run_at_once(stages, out, workers, accept_sources)
        progress = Progress(stages)
        runner = StageRunner(out, progress, accept=accept_sources, only_finished=only_finished)
        outcomes = runner.run(stages)
        summaries = {name: outcome.summary for name, outcome in outcomes.items()}
        rows = [row for seed in range(seeds) for row in gather(protocol, seed, summaries)]
        if not rows:
            raise DataError(f"{out} holds no finished model of these sources: run it first")
        folder = tokens if tokens is not None else out / TOKENS / "tokens"
        results = assemble(protocol, rows, outcomes, data_record(folder), command)
        results["missing"] = [stage.name for stage in stages if stage.name not in outcomes]
        with writing(out):
            write_json(out / "results.json", results)
            return render(results, out)


LEARNED = ("diverged", "tokens_per_second", "cpu_seconds")


def render(results: Mapping[str, Any], out: Path) -> Path:
    """Draw the figures and write both reports from the content of a `results.json`."""
    rows = [row_from_json(row) for row in results["rows"]]
    return write_report(results, draw_all(rows, out / "figures"), out)


def gather(protocol: Protocol, seed: int, done: Mapping[str, dict[str, Any]]) -> list[Row]:
    """The rows of one seed from its stages' summaries: the base, then the arms in order."""
    rows = []
    for arm in (THE_BASE, *protocol.arms):
        top = f"seed-{seed}/{arm.name}"
        if f"{top}/measure" not in done:
            continue
        trained, measured = done[f"{top}/train"], done[f"{top}/measure"]
        curve = trained.get("curve", [])
        ours = {"arm": arm.name, "title": arm.title, "seed": seed, "curve": curve}
        ours["before"] = curve[0][1] if curve and arm.start is not None else None
        ours["control"] = CONTROL if arm is THE_BASE else arm.control
        learned = {key: trained.get(key) for key in LEARNED}
        rows.append(row_from_json({**ours, **learned, **measured, **done.get(f"{top}/score", {})}))
    return rows


def assemble(
    protocol: Protocol,
    rows: list[Row],
    outcomes: Mapping[str, Outcome],
    data: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    """The content of `results.json`, strict JSON."""
    return finite(
        {
            "format": FORMAT,
            "command": command,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(*LIBRARIES),
            "source_sha256": sources(),
            "device": machine(),
            "seeds": sorted({row.seed for row in rows}),
            "protocol": protocol.to_dict(),
            "data": data,
            "seconds": sum(outcome.seconds for outcome in outcomes.values()),
            "stages": {
                name: {"hash": o.hash, "seconds": o.seconds, "source_sha256": o.source}
                for name, o in outcomes.items()
            },
            "summary": summarize(rows),
            "comparisons": comparisons(rows, protocol.to_dict()["arms"]),
            "budgets": under_budgets(rows),
            "rows": rows,
        }
    )


def data_record(folder: Path) -> dict[str, Any]:
    """What the report says about the data."""
    meta = TokenMeta.load(folder)
    return {
        "source": Path(meta.source).name if os.path.isabs(meta.source) else meta.source,
        "vocab_size": meta.vocab_size,
        "tokenizer_sha256": meta.tokenizer.sha256,
        "train_tokens": meta.splits["train"].tokens,
        "val_tokens": meta.splits["val"].tokens,
        "val_documents": meta.splits["val"].documents,
    }
