"""`reproduce --task depth`: run the stages and gather the results."""

import datetime
from pathlib import Path
from typing import Any

from versatileffn.models.checkpoint import without_progress_bars
from versatileffn.provenance import machine, versions
from versatileffn.reproduce.depth.plan import DepthPlan
from versatileffn.reproduce.depth.protocol import DepthProtocol
from versatileffn.reproduce.depth.report import render
from versatileffn.reproduce.depth.results import summarize
from versatileffn.reproduce.parallel import check_counts, cpu_threads, run_at_once
from versatileffn.reproduce.progress import Progress
from versatileffn.reproduce.results import finite
from versatileffn.reproduce.stages import LIBRARIES, Outcome, StageRunner, held, sources
from versatileffn.workspace.durable import write_json, writing

FORMAT = 1


def reproduce_depth(
    protocol: DepthProtocol,
    out: Path,
    seeds: int = 1,
    workers: int = 1,
    command: str = "versatileffn.reproduce.depth.run.reproduce_depth",
) -> Path:
    """Run the depth experiment, or what is missing of it, and write the report.

    Args:
        protocol: the experiment.
        out: folder for everything; one that an earlier run left is continued.
        seeds: independent repetitions, from the protocol's first seed on.
        workers: processes, each with one CPU thread; results don't depend on how many. Several
            import the calling program, whose work must stand below `if __name__ == "__main__":`.
        command: what the report says it was made by.

    Returns:
        Path of the HTML report; `report.md`, `results.json` and `figures/` lie beside it.

    Raises:
        ConfigError: `seeds` or `workers` make no sense, or `out` holds something else.
    """
    check_counts(seeds, workers)
    first = protocol.first_seed
    plan = DepthPlan(protocol, out, tuple(range(first, first + seeds)))
    with held(out), without_progress_bars(), cpu_threads(1):
        stages = plan.stages()
        if workers > 1:
            run_at_once(stages, out, workers)
        outcomes = StageRunner(out, Progress(stages)).run(stages)
        results = assemble(protocol, plan.seeds, outcomes, command)
        with writing(out):
            write_json(out / "results.json", results)
            return render(results, out)


def gather(
    protocol: DepthProtocol, seeds: tuple[int, ...], outcomes: dict[str, Outcome]
) -> list[dict[str, Any]]:
    """One row for each arm and seed."""
    rows = []
    for seed in seeds:
        for arm in protocol.arms:
            top = f"seed-{seed}/{arm.name}"
            done = {**outcomes[f"{top}/train"].summary, **outcomes[f"{top}/measure"].summary}
            rows.append({"arm": arm.name, "title": arm.title, "seed": seed, **done})
    return rows


def assemble(
    protocol: DepthProtocol,
    seeds: tuple[int, ...],
    outcomes: dict[str, Outcome],
    command: str,
) -> dict[str, Any]:
    """The content of `results.json`, strict JSON."""
    rows = gather(protocol, seeds, outcomes)
    rates = {
        name.split("/")[1]: outcome.summary
        for name, outcome in outcomes.items()
        if name.endswith("/choose")
    }
    return finite(
        {
            "format": FORMAT,
            "task": "depth",
            "command": command,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": versions(*LIBRARIES),
            "source_sha256": sources(),
            "device": machine(),
            "seeds": list(seeds),
            "protocol": protocol.to_dict(),
            "seconds": sum(outcome.seconds for outcome in outcomes.values()),
            "rates": rates,
            "summary": summarize(rows, protocol.judged, protocol.reference),
            "rows": rows,
        }
    )
