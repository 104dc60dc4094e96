"""Planned memory is the measured one, within a tenth. All modes: `python tests/planning`."""

import json
import runpy
import threading
from pathlib import Path

import pytest
import torch

from planning.cases import WITHIN, Case, all_cases, compare, make_config
from planning.measure import peak, recorded
from support import threads
from versatileffn.planning.plan import RunPlan

MAIN = runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="table")
SAMPLE = [
    Case("dense", "auto", True, False),
    Case("versatile", "auto", False, False),
    Case("versatile", "recompute", False, True),
    Case("moe", "auto", False, False),
]


one_thread = pytest.fixture(autouse=True)(threads.one_thread)


def test_what_another_thread_lets_go_of_is_not_held():
    """As gloo's threads do; the profiler alone sees no release here."""
    with recorded() as profiler:
        for _ in range(4):
            held = [torch.empty(1000)]
            other = threading.Thread(target=held.clear)
            other.start()
            other.join()
    assert peak(profiler) == 4000


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_plan_holds(case, tmp_path):
    found = compare(case, tmp_path)
    assert abs(found["ratio"] - 1) <= WITHIN, found


def test_modes_differ_by_more_than_the_tolerance(tmp_path):
    """So that a plan of the wrong mode would be noticed above."""
    config = make_config(SAMPLE[1], tmp_path)
    auto = RunPlan(config, 1, 2.5).mode("ddp")
    for change in ({"execution": "masked"}, {"execution": "recompute"}, {"bf16": True},
                   {"gradient_checkpointing": True}):  # fmt: skip
        other = RunPlan(config, 1, 2.5).mode("ddp", **change)
        assert abs(other.peak / auto.peak - 1) > WITHIN, change
    assert (
        RunPlan(config, 1, 4).mode("ddp").peak > auto.peak > RunPlan(config, 1, 1).mode("ddp").peak
    )


def test_states_are_what_they_are_by_arithmetic(tmp_path):
    plan = RunPlan(make_config(SAMPLE[0], tmp_path), 1)
    parts = plan.mode("ddp").parts
    assert parts["weights"] == pytest.approx(4 * plan.parameters, rel=0.001)
    assert parts["optimizer state"] == pytest.approx(8 * plan.parameters, rel=0.001)


def test_several_processes_hold_buckets_or_shares(tmp_path):
    plan = RunPlan(make_config(SAMPLE[0], tmp_path), 2)
    ddp, fsdp2 = plan.mode("ddp").parts, plan.mode("fsdp2").parts
    assert ddp["gradient buckets"] == pytest.approx(4 * plan.parameters, rel=0.001)
    for part in ("weights", "optimizer state"):
        assert fsdp2[part] == pytest.approx(ddp[part] / 2, rel=0.05)
    assert fsdp2["gathered weights"] > 0
    assert not torch.distributed.is_initialized()


def test_the_page_is_of_the_committed_results_of_all_modes_which_agree():
    rows = json.loads(MAIN["RESULTS"].read_text())
    assert MAIN["table"](rows) in MAIN["PAGE"].read_text()
    assert [MAIN["case_of"](row) for row in rows] == list(all_cases())
    for row in rows:
        assert abs(row["planned"] / row["measured"] - 1) <= WITHIN, str(MAIN["case_of"](row))
