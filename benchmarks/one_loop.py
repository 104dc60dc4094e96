"""One loop for every token beside the dense model: with the compiled kernel, and by operators.

    versatileffn upcycle DENSE MODEL --gains learned      # or fixed, the paper's form
    versatileffn doctor --build
    python -m benchmarks.one_loop MODEL DENSE             # minutes; writes its rows
    python -m benchmarks.one_loop --render                # the table into docs/performance.md

The three take turns in one process. Under `max_loops=1` both ways compute the same,
which is seen to first.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import versatileffn  # noqa: F401  # registers the classes
from benchmarks.__main__ import MEASURED
from benchmarks.report import write_into
from versatileffn.analysis.speed import TOLERANCE, Decoding, measure, prefill
from versatileffn.execution import native
from versatileffn.provenance import machine, source_digest, versions
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.manifest import read_record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "one_loop.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- table: python -m benchmarks.one_loop -->\n", "<!-- end of table -->\n"
GOALS = {"decode": 0.92, "prefill": 0.95}
"""Reuse over dense, in tokens per second."""
PROMPT, NEW = 128, 8
WAYS = {"kernel": native.MOST_TOKENS, "operators": 0}
"""The most tokens that the kernel takes, by the way of measuring."""


def main() -> None:
    """Measure, or render."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_loop", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL DENSE")
    parser.add_argument("--seconds", type=float, default=45.0, help="for each row")
    parser.add_argument("--render", action="store_true")
    given = parser.parse_args()
    if not given.render:
        if len(given.models) != 2 or native.load() is None:
            parser.error("give MODEL and DENSE, and run `versatileffn doctor --build` before")
        logging.disable_progress_bar()
        torch.set_num_threads(1)
        model, dense = given.models
        write(model, dense, given.seconds)
    write_into(PAGE, BEGIN, markdown(recorded()), END)


def write(model: str, dense: str, seconds: float) -> None:
    """Measure a model in each dtype, and put its rows in the place of older ones."""
    record = recorded()
    for dtype in (torch.float32, torch.bfloat16):
        rows = measured(load(model, dtype), load(dense, dtype), dtype, seconds)
        new = {key(row) for row in rows}
        record["runs"] = [row for row in record["runs"] if key(row) not in new] + rows
        record |= {"goals": GOALS, "prompt": PROMPT, "new_tokens": NEW, "threads": 1}
        record["runs"].sort(key=key)
        write_json(RESULTS, record)


def recorded() -> dict[str, Any]:
    """What was measured before."""
    record = read_record(RESULTS)
    assert record is not None, f"{RESULTS} can't be read: restore it"
    return record


def load(source: str, dtype: torch.dtype) -> Any:
    """A model of a folder, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()


def measured(model: Any, dense: Any, dtype: torch.dtype, seconds: float) -> list[dict[str, Any]]:
    """A row for decoding and one for reading a prompt."""
    model.set_compute_budget(max_loops=1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, model.config.vocab_size - 100, (1, PROMPT), generator=generator)
    works: dict[str, dict[str, Callable[[], Any]]] = {
        "decode": {"reuse": Decoding(model, ids, NEW), "dense": Decoding(dense, ids, NEW)},
        "prefill": {"reuse": lambda: prefill(model, ids), "dense": lambda: prefill(dense, ids)},
    }
    rows = []
    for work, run in works.items():
        ways = {way: by_way(way, run["reuse"]) for way in WAYS}
        kernel, operators = (ways[way]()[0].double() for way in WAYS)
        assert (kernel - operators).norm() <= TOLERANCE[dtype] * operators.norm(), work
        times = measure({"dense": run["dense"], **ways}, rounds=10_000, seconds=seconds)
        tokens = NEW if work == "decode" else PROMPT
        rows.append({
            "work": work, "gains": model.config.ffn().reuse_gains, "dtype": str(dtype)[6:],
            "rounds": len(times["dense"]),
            "dense_tokens_per_second": tokens / times.spreads()["dense"]["median"],
            **{way: times.ratio("dense", way) for way in WAYS},
            "versions": versions("torch", "transformers"), "device": machine(accelerator=False),
            "sources_sha256": source_digest(MEASURED),
        })  # fmt: skip
        print(*key(rows[-1]), *(f"{way} {rows[-1][way]}" for way in WAYS), flush=True)
    return rows


def by_way(way: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same work, with the kernel for as many tokens as this way leaves to it."""

    def call() -> Any:
        native.MOST_TOKENS = WAYS[way]
        return run()

    return call


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row is about."""
    return row["work"], row["gains"], row["dtype"]


def markdown(record: dict[str, Any]) -> str:
    """The table of a record, goals beside."""
    lines = ["| work | gains | dtype | rounds | operators / dense | kernel / dense | goal |"]
    lines.append("|---|---|---|---:|---|---|---|")
    for row in record["runs"]:
        cells = [f"{r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for r in
                 (row["operators"], row["kernel"])]  # fmt: skip
        goal = record["goals"][row["work"]]
        met = "met" if row["kernel"]["median"] >= goal else "**missed**"
        lines.append(f"| {' | '.join(key(row))} | {row['rounds']} | {' | '.join(cells)} | {met} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
