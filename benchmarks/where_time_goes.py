"""Where the time of one layer goes, and how much of it no executor could save.

For each case: the share of matrix products, of moving tokens into order and back, and of all else,
by torch's profiler; and `rows`, the time of the *dense* FFN run once on as many rows as each loop
has, over E[ℓ̂] times its time on all rows. Products on few rows reuse the weights less often, so
`rows` is above 1, and an executor that only multiplies could not fall below it.

    python benchmarks/where_time_goes.py --out benchmarks/results/where_time_goes.json \\
        --docs docs/performance.md
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from versatileffn.bench.distributions import SHARES
from versatileffn.bench.layers import Setup, set_up
from versatileffn.bench.machine import TUNED, device_record, measured_versions
from versatileffn.execution.order import count_active
from versatileffn.files import write_json

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
BEGIN, END = "<!-- where: begin -->", "<!-- where: end -->"


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in TUNED.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | TUNED)
    torch.set_num_threads(given.threads)
    rows = [measure(*case) for case in CASES]
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "versions": measured_versions(),
        "machine": device_record("cpu"),
        "threads": given.threads,
        "seed": 0,
        "cases": rows,
    }
    write_json(given.out, record)
    print(table(rows))
    if given.docs is not None:
        text = given.docs.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        given.docs.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


def measure(
    kind: str, d_model: int, tokens: int, dtype: str, mean: str, executor: str, training: bool
) -> dict[str, Any]:
    """One row."""
    setup = set_up(d_model, 4 * d_model, tokens, SHARES[mean], dtype, training=training)
    if training:
        run: Callable[[], Any] = lambda: setup.train_step(executor)  # noqa: E731
        active = None
    else:
        with torch.no_grad():
            plan = setup.plan()
        active = count_active(plan.loop_count, plan.max_loops)()[:-1]

        def run() -> Any:
            with torch.no_grad():
                return setup.run(executor, plan)

    shares = profiled(run)
    row = {"case": kind, "d_model": d_model, "tokens": tokens, "dtype": dtype, "loops": mean}
    row |= {"executor": executor, **shares}
    if active is not None and tokens > 1:
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

    def dense(count: int) -> float:
        started = time.perf_counter()
        with torch.no_grad():
            hidden[:count] + layer.mlp(layer.norm(hidden[:count]))
        return time.perf_counter() - started

    mean = sum(active) / active[0]
    rounds = []
    for _ in range(12):
        parts = [dense(count) for count in active]
        rounds.append(sum(parts) / (mean * parts[0]))
    return statistics.median(rounds[2:])


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
    main()
