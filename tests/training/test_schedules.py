"""The temperature, and the learning rate that the Trainer really uses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatileffn.training.optim_config import TAU_PRESETS, OptimSection
from versatileffn.training.run import train
from versatileffn.training.schedules import tau_at

PAPER = TAU_PRESETS["paper"]


def test_paper_values():
    assert tau_at(0, 1000, **PAPER) == 5.0
    assert tau_at(480, 1000, **PAPER) == pytest.approx(math.sqrt(5.0 * 0.1))  # half of 960
    assert tau_at(960, 1000, **PAPER) == 0.1
    assert tau_at(1000, 1000, **PAPER) == 0.1


def test_as_released_is_constant():
    tau = OptimSection(learning_rate=1, tau="as-released").tau
    values = {tau_at(s, 50, tau.start, tau.end, tau.anneal_fraction) for s in range(51)}
    assert values == {5.0}


@given(st.integers(1, 10_000), st.integers(0, 10_000))
def test_falls_monotonically_within_its_bounds(max_steps, step):
    now, later = tau_at(step, max_steps, **PAPER), tau_at(step + 1, max_steps, **PAPER)
    assert 0.1 <= later <= now <= 5.0


def test_learning_rate_warms_up_and_falls_to_a_tenth(make_config):
    import json

    run = train(make_config(run__max_steps=40, run__logging_steps=1, run__eval_steps=40))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert len(rates) == 40
    for step, rate in enumerate(rates):
        if step < 2:  # 5 % of 40 steps
            expected = 0.01 * step / 2
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - 2) / 38))
            expected = 0.01 * (0.1 + 0.9 * cosine)
        assert rate == pytest.approx(expected), step
