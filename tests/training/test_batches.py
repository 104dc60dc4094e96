"""Which windows are read when: every window once an epoch, whatever the number of processes."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatileffn.errors import ConfigError
from versatileffn.training.batches import BatchPlan, WindowBatches, plan_batches

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


def test_epochs_become_steps(make_config):
    config = make_config(run__max_steps=None, run__num_train_epochs=2.5)
    plan = plan_batches(config, num_windows=100, world_size=2)
    assert plan.max_steps == 31  # 250 windows, 8 a step
    assert plan.accumulation == 1
    assert plan.epochs_at(31) == pytest.approx(2.48)


def test_a_batch_that_does_not_divide_names_the_numbers(make_config):
    with pytest.raises(ConfigError, match="8 windows of 32 tokens, not a multiple of 3 processes"):
        plan_batches(make_config(), num_windows=100, world_size=3)
