"""Statistics over seeds and documents, and strict JSON."""

import dataclasses
import json
import math

import numpy as np
import pytest

from reproduce.rows import SHIFT, SIZES, rows
from versatileffn.reproduce.results import finite, row_from_json, summarize
from versatileffn.reproduce.statistics import clustered_error, holm, interval


def test_interval_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    error = 1 / math.sqrt(3)
    assert found.mean == 2
    assert found.standard_error == pytest.approx(error)
    t = 4.302653  # 97.5 % point of Student's t with two degrees of freedom
    assert found.low == pytest.approx(2 - t * error, rel=1e-6)
    assert found.high == pytest.approx(2 + t * error, rel=1e-6)
    ratio = 2 / error  # with two degrees of freedom, F(t) = 1/2 + t / (2 sqrt(2 + t²))
    assert found.p == pytest.approx(1 - ratio / math.sqrt(2 + ratio**2), rel=1e-9)


def test_one_value_has_no_interval() -> None:
    found = interval([1.5])
    assert (found.mean, found.n, found.standard_error, found.low, found.p) == (1.5, 1, *[None] * 3)


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_values_that_are_all_the_same(value: float, p: float) -> None:
    assert interval([value] * 3).p == p


def test_holm_by_hand() -> None:
    # Sorted: 0.01·4, 0.02·3, 0.03·2, 0.9·1, each at least the one before, at most 1.
    assert holm([0.02, 0.9, 0.01, 0.03]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_never_rejects_what_no_step_of_its_procedure_does() -> None:
    """Against the step-down procedure as it is defined, at every level."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = generator.uniform(0, 0.2, 6)
        level = generator.uniform(0.01, 0.5)
        rejected = set()
        for step, index in enumerate(np.argsort(values)):
            if values[index] > level / (6 - step):
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(holm(values.tolist())) if p <= level} == rejected


def test_error_over_documents_is_that_of_drawing_documents() -> None:
    """Against the jackknife over documents, which needs no formula."""
    generator = np.random.default_rng(1)
    sizes = generator.integers(50, 500, 40)
    totals = sizes * generator.normal(0.1, 0.02, 40)
    left_out = (totals.sum() - totals) / (sizes.sum() - sizes)
    jackknife = math.sqrt(39 / 40 * np.square(left_out - left_out.mean()).sum())
    assert clustered_error(totals.tolist(), sizes.tolist()) == pytest.approx(jackknife, rel=0.05)
    tokens = math.sqrt(np.square(totals / sizes - 0.1).mean() / sizes.sum())  # as if independent
    assert clustered_error(totals.tolist(), sizes.tolist()) > 5 * tokens
    assert clustered_error([1.0], [10]) is None


def test_differences_are_paired_by_seed() -> None:
    summary = {record["arm"]: record for record in summarize(rows(3))}
    # All losses move by 0.1 per seed; a paired difference doesn't see that.
    assert summary["versatile"]["difference"]["mean"] == pytest.approx(0.1)
    assert summary["versatile"]["difference"]["standard_error"] == pytest.approx(0, abs=1e-12)
    loop = summary["4-loop"]["difference"]
    assert loop["mean"] == pytest.approx(-0.09)
    assert loop["standard_error"] == pytest.approx(0.01 / math.sqrt(3))
    assert summary["dense"]["difference"] is None
    assert summary["base"]["difference"]["mean"] == pytest.approx(0.2)


def test_differences_are_paired_by_document() -> None:
    """Losses that differ by document, but alike in both models, are no error of the difference."""
    summary = {record["arm"]: record["difference"] for record in summarize(rows(3))}
    assert summary["versatile"]["document_error"] == pytest.approx(0, abs=1e-12)
    assert summary["versatile"]["documents"] == 3
    residual = np.array(SHIFT) - sum(SHIFT) / sum(SIZES) * np.array(SIZES)
    by_hand = math.sqrt(3 / 2 * np.square(residual).sum()) / sum(SIZES)
    assert summary["4-loop"]["document_error"] == pytest.approx(by_hand)


def test_p_values_are_corrected_for_all_comparisons_of_the_table() -> None:
    noisy = rows(3)
    for index, row in enumerate(noisy):
        assert row.after is not None
        after = dataclasses.replace(
            row.after, nats_per_token=row.after.nats_per_token + 0.01 * math.sin(index)
        )
        noisy[index] = dataclasses.replace(row, after=after)
    found = [record["difference"] for record in summarize(noisy) if record["difference"]]
    assert len(found) == 4
    assert [record["p_holm"] for record in found] == holm([record["p"] for record in found])
    assert all(record["p_holm"] is None for record in _differences(rows(1)))


def _differences(made: list) -> list[dict]:
    return [record["difference"] for record in summarize(made) if record["difference"]]


def test_a_model_that_diverged_is_in_no_mean() -> None:
    made = rows(3)
    gone = next(row for row in made if row.arm == "moe" and row.seed == 1)
    made[made.index(gone)] = dataclasses.replace(gone, after=None, diverged="step 9: NaN")
    record = {record["arm"]: record for record in summarize(made)}["moe"]
    assert record["diverged"] == [1]
    assert record["difference"]["n"] == 2
    assert record["nats_per_token"] == pytest.approx(3.75 + 0.1)  # seeds 0 and 2


def test_rows_survive_strict_json() -> None:
    diverged = dataclasses.replace(rows(1)[0], after=None, diverged="step 9: NaN")
    for row in [*rows(1), diverged]:
        text = json.dumps(finite(row), allow_nan=False)
        assert row_from_json(json.loads(text)) == row


def test_numbers_that_json_lacks_become_null() -> None:
    assert finite({"a": [float("nan"), 1.0], 2: float("inf")}) == {"a": [None, 1.0], "2": None}
