"""Which windows are read when: every window once an epoch, whatever the number of processes."""

import collections
import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatileffn.data import order
from versatileffn.errors import ConfigError
from versatileffn.training.batches import BatchPlan, WindowBatches, plan_batches
from versatileffn.training.inputs import check_same_run, inputs_sha256, run_inputs

PLAN = BatchPlan(
    num_windows=22, windows_per_step=8, micro_batch=2, world_size=1, max_steps=11, seed=3
)


def all_windows(plan: BatchPlan) -> list[int]:
    return [w for step in range(plan.max_steps) for w in WindowBatches(plan).step_windows(step)]


def test_each_epoch_visits_every_window_once_in_another_order():
    windows = all_windows(PLAN)
    epochs = [windows[i : i + 22] for i in range(0, 88, 22)]
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_order_depends_on_the_seed_only():
    assert all_windows(PLAN) == all_windows(PLAN)
    assert all_windows(PLAN) != all_windows(dataclasses.replace(PLAN, seed=4))


@settings(max_examples=40, deadline=None)
@given(world_size=st.sampled_from([1, 2, 4]), micro_batch=st.sampled_from([1, 2]),
       num_windows=st.integers(1, 50), seed=st.integers(0, 9))  # fmt: skip
def test_processes_share_each_step_without_overlap(world_size, micro_batch, num_windows, seed):
    plan = BatchPlan(num_windows, 8, micro_batch, world_size, 5, seed)
    ranks = [list(WindowBatches(plan, rank)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {5 * plan.accumulation}
    assert len(WindowBatches(plan)) == 5 * plan.accumulation
    for step in range(5):
        part = slice(step * plan.accumulation, (step + 1) * plan.accumulation)
        read = [w for batches in ranks for batch in batches[part] for w in batch]
        assert sorted(read) == sorted(WindowBatches(plan).step_windows(step))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_windows=st.integers(1, 90), before=st.integers(1, 6),
       after=st.integers(1, 6), at_once=st.tuples(*[st.sampled_from([1, 2])] * 2),
       computed=st.booleans())  # fmt: skip
def test_another_number_of_ranks_goes_on_where_the_first_stopped(
    data, num_windows, before, after, at_once, computed
):
    """No window is repeated or skipped, whatever the step: epochs are as of one process."""
    per_step = math.lcm(before * at_once[0], after * at_once[1])
    plan = BatchPlan(num_windows, per_step, 1, 1, 3 * num_windows // per_step + 1, seed=7)
    stop = data.draw(st.integers(0, plan.max_steps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "LARGEST_TABLE", 0 if computed else 2**22)
        read = []
        for ranks, micro_batch, steps in (
            (before, at_once[0], range(stop)),
            (after, at_once[1], range(stop, plan.max_steps)),
        ):
            shared = dataclasses.replace(plan, micro_batch=micro_batch, world_size=ranks)
            batches = [list(WindowBatches(shared, rank)) for rank in range(ranks)]
            for step in steps:  # a resumed run leaves out the batches before, as Trainer does
                part = slice(step * shared.accumulation, (step + 1) * shared.accumulation)
                read += sorted(w for rank in batches for batch in rank[part] for w in batch)
        whole = [sorted(WindowBatches(plan).step_windows(step)) for step in range(plan.max_steps)]
        assert read == [window for step in whole for window in step]
        epochs, rest = divmod(len(read), num_windows)
        counts = collections.Counter(read)
        assert set(counts) == set(range(num_windows))
        assert sum(count - epochs for count in counts.values()) == rest
        assert {count - epochs for count in counts.values()} <= {0, 1}


def test_the_run_says_which_order_it_reads_in(make_config, monkeypatch):
    """Another one wouldn't go on where the first stopped."""
    config = make_config()
    table = run_inputs(config, plan_batches(config, 100, 1))
    assert table["window_order"] == "table-1"
    stored = run_inputs(config, plan_batches(config, 100, 1, shuffled=False))
    assert stored["window_order"] == "stored"
    monkeypatch.setattr(order, "LARGEST_TABLE", 99)
    computed = run_inputs(config, plan_batches(config, 100, 1))
    assert computed["window_order"] == "computed-1"
    assert len({inputs_sha256(inputs) for inputs in (table, stored, computed)}) == 3
    with pytest.raises(ConfigError, match="window_order is 'computed-1', was 'table-1'"):
        check_same_run(computed, table, Path("run"))


def test_epochs_become_steps(make_config):
    config = make_config(run__max_steps=None, run__num_train_epochs=2.5)
    plan = plan_batches(config, num_windows=100, world_size=2)
    assert plan.max_steps == 31  # 250 windows, 8 a step
    assert plan.accumulation == 1
    assert plan.epochs_at(31) == pytest.approx(2.48)


def test_a_batch_that_does_not_divide_names_the_numbers(make_config):
    with pytest.raises(ConfigError, match="8 windows of 32 tokens, not a multiple of 3 processes"):
        plan_batches(make_config(), num_windows=100, world_size=3)
