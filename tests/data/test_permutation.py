"""The computed order: a permutation of any size, random enough, and never another one."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatileffn.data import permutation
from versatileffn.data.order import LARGEST_TABLE, epoch_order, order_name, window_order
from versatileffn.data.permutation import Permutation


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 1000))
def test_it_is_a_permutation_and_pure(size: int, seed: int, epoch: int) -> None:
    places = np.arange(size)
    order = Permutation(size, seed, epoch)(places)
    assert np.array_equal(np.sort(order), places)
    assert np.array_equal(order, Permutation(size, seed, epoch)(places))


def test_it_never_changes() -> None:
    """Runs that are under way go on in this order. (Computed once, by this very code.)"""
    order = Permutation(24_414_062, 0, 0)(np.arange(6))
    assert order.tolist() == [12772332, 18795461, 14969713, 5859034, 20125010, 18790819]


def randomness(size: int, seed: int = 0) -> float:
    """The largest deviation of an order from chance, in standard deviations."""
    order = Permutation(size, seed, 0)(np.arange(size)).astype(float)
    place = np.arange(size)
    deviations = [
        abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) * np.sqrt(size) for lag in (1, 2, 7, 384)
    ]
    deviations.append(abs(np.corrcoef(order, place)[0, 1]) * np.sqrt(size))
    for part in np.array_split(order, 20):  # each step draws from everywhere alike
        counts = np.histogram(part, 50, (0, size))[0]
        chi = ((counts - counts.mean()) ** 2).sum() / counts.mean()
        deviations.append(abs(chi - 49) / np.sqrt(2 * 49))
    steps = np.diff(order)
    deviations.append(abs(np.mean(steps == 1) - 1 / size) * size)  # neighbours stay together
    return max(deviations)


def test_it_looks_random(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(randomness(size) for size in (50_000, 65_536, 99_991)) < 5
    monkeypatch.setattr(permutation, "ROUNDS", 2)
    assert randomness(65_536) > 100  # two rounds leave a pattern: the measure sees one


def test_every_thing_visits_every_place() -> None:
    places = np.array([Permutation(5, 0, epoch)(np.arange(5)) for epoch in range(3000)])
    counts = np.array([[np.sum(places[:, p] == w) for p in range(5)] for w in range(5)])
    assert abs(counts - 600).max() < 120  # five standard deviations


def test_a_large_epoch_takes_no_memory() -> None:
    """100B tokens in windows of 2,048: a table would take 390 MB in each process."""
    windows = 48_828_125
    tracemalloc.start()
    try:
        order = epoch_order(windows, 0, 1)
        found = order(np.arange(20_000_000, 20_000_512))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert order_name(windows) == "computed-1"
    assert len(set(found.tolist())) == 512
    assert found.max() < windows
    assert peak < 1e6


def test_small_corpora_keep_the_order_they_had() -> None:
    """Finished runs are reproduced, and those under way go on."""
    assert order_name(LARGEST_TABLE) == "table-1"
    places = np.array([3, 0, 99])
    assert epoch_order(100, 5, 2)(places).tolist() == window_order(100, 5, 2)[places].tolist()
