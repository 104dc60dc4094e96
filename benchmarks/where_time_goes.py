"""Where the time of one layer goes, and how much of it no executor could save.

For each case: the share of matrix products, of moving tokens into order and back, and of all else,
by torch's profiler; and `rows`, the time of the *dense* FFN run once on as many rows as each loop
has, over E[ℓ̂] times its time on all rows. Products on few rows reuse the weights less often, so
`rows` is above 1, and an executor that only multiplies could not fall below it.

    python -m benchmarks.where_time_goes   # benchmarks/results/where_time_goes.json, and its table
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.distributions import SHARES
from benchmarks.layers import Setup, set_up
from benchmarks.machine import ROOT, be_tuned, cpu_record, measured_versions
from versatileffn.analysis.timing import Budget, Timings, measure
from versatileffn.execution.order import count_active
from versatileffn.workspace.durable import write_json

CASES = [
    # name, D, tokens, dtype, distribution, executor, training
    ("inference", 1024, 512, "float32", "1.2", "packed", False),
    ("inference", 1024, 512, "bfloat16", "1.2", "packed", False),
    ("inference", 1024, 2048, "bfloat16", "1.4", "packed", False),
    ("inference", 1024, 2048, "float32", "2.5", "packed", False),
    ("inference", 1024, 2048, "bfloat16", "2.5", "packed", False),
    ("decode", 512, 1, "bfloat16", "4.0", "packed", False),
    ("training", 1024, 1024, "bfloat16", "1.4", "packed", True),
    ("training", 512, 1024, "bfloat16", "1.4", "packed", True),
    ("training", 1024, 1024, "float32", "2.5", "recompute", True),
]
GROUPS = {
    "products": ("mm", "addmm", "addmm_", "bmm"),
    "ordering": ("index_select", "index_copy_", "index", "sort", "argsort", "gather", "scatter"),
}


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/where_time_goes.json"
    )
    given = parser.parse_args()
    rows = [row_of(*case) for case in CASES]
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.where_time_goes", *sys.argv[1:]]),
        "versions": measured_versions(),
        "machine": cpu_record(),
        "threads": torch.get_num_threads(),
        "seed": 0,
        "cases": rows,
    }
    write_json(given.out, record)
    print(table(rows))


def row_of(
    kind: str, d_model: int, tokens: int, dtype: str, mean: str, executor: str, training: bool
) -> dict[str, Any]:
    """One row."""
    setup = set_up(d_model, 4 * d_model, tokens, SHARES[mean], dtype, training=training)
    row = {"case": kind, "d_model": d_model, "tokens": tokens, "dtype": dtype, "loops": mean}
    row |= {"executor": executor}
    if training:
        return row | profiled(partial(setup.train_step, executor))
    with torch.no_grad():
        plan = setup.plan()
        row |= profiled(partial(setup.run, executor, plan))
        if tokens > 1:
            active = count_active(plan.loop_count, plan.max_loops)()[:-1]
            row["rows"] = rows_bound(setup, [count for count in active if count])
    return row


def profiled(run: Callable[[], Any]) -> dict[str, float]:
    """Shares of the time spent in torch's operators."""
    for _ in range(3):
        run()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(5):
            run()
    spent = dict.fromkeys((*GROUPS, "else"), 0.0)
    for event in trace.key_averages():
        name = event.key.removeprefix("aten::")
        group = next((group for group, names in GROUPS.items() if name in names), "else")
        spent[group] += event.self_cpu_time_total
    total = sum(spent.values())
    return {group: value / total for group, value in spent.items()}


def rows_bound(setup: Setup, active: list[int]) -> float:
    """Time of the dense FFN on the rows of each loop / (E[ℓ̂] × on all rows), median of rounds."""
    layer, hidden = setup.layer, setup.hidden_MD

    def dense(counts: list[int]) -> None:
        for count in counts:
            hidden[:count] + layer.mlp(layer.norm(hidden[:count]))

    run = {"rows": partial(dense, active), "once": partial(dense, active[:1])}
    timings: Timings = measure(run, Budget(rounds=12, warmup=2))
    return timings.ratio("rows", "once", sum(active) / active[0]).median


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| case | D | tokens | dtype | E[ℓ̂] | executor | products | ordering | all else | `rows` |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bound = f"{row['rows']:.2f}" if "rows" in row else "–"
        lines.append(
            f"| {row['case']} | {row['d_model']} | {row['tokens']} | {row['dtype']} | "
            f"{row['loops']} | {row['executor']} | {row['products']:.0%} | "
            f"{row['ordering']:.0%} | {row['else']:.0%} | {bound} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    be_tuned()
    main()
