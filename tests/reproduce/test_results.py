"""Statistics over seeds, and strict JSON."""

import json
import math

import pytest

from reproduce.rows import rows
from versatileffn.reproduce.results import T_95, finite, interval, row_from_json, summarize


def test_interval_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    error = 1 / math.sqrt(3)
    assert found.mean == 2
    assert found.standard_error == pytest.approx(error)
    assert found.low == pytest.approx(2 - 4.303 * error)
    assert found.high == pytest.approx(2 + 4.303 * error)


def test_one_value_has_no_interval() -> None:
    found = interval([1.5])
    assert (found.mean, found.n, found.standard_error, found.low) == (1.5, 1, None, None)


def student_t_cdf(t: float, degrees: int) -> float:
    """By Simpson's rule over the density."""
    scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)

    def density(x: float) -> float:
        return scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2)

    steps = 20_000
    h = t / steps
    inner = sum((4 if i % 2 else 2) * density(i * h) for i in range(1, steps))
    return 0.5 + h / 3 * (density(0) + inner + density(t))


@pytest.mark.parametrize("degrees", sorted(T_95))
def test_t_table(degrees: int) -> None:
    assert student_t_cdf(T_95[degrees], degrees) == pytest.approx(0.975, abs=3e-5)


def test_differences_are_paired_by_seed() -> None:
    summary = {record["arm"]: record for record in summarize(rows(3))}
    # All losses move by 0.1 per seed; a paired difference doesn't see that.
    assert summary["versatile"]["nats_per_token"]["standard_error"] > 0.05
    assert summary["versatile"]["difference"]["mean"] == pytest.approx(0.1)
    assert summary["versatile"]["difference"]["standard_error"] == pytest.approx(0, abs=1e-12)
    loop = summary["4-loop"]["difference"]
    assert loop["mean"] == pytest.approx(-0.09)
    assert loop["standard_error"] == pytest.approx(0.01 / math.sqrt(3))
    assert summary["dense"]["difference"] is None
    assert summary["base"]["difference"]["mean"] == pytest.approx(0.2)


def test_rows_survive_strict_json() -> None:
    for row in rows(1):
        text = json.dumps(finite(row), allow_nan=False)
        assert row_from_json(json.loads(text)) == row


def test_numbers_that_json_lacks_become_null() -> None:
    assert finite({"a": [float("nan"), 1.0], 2: float("inf")}) == {"a": [None, 1.0], "2": None}
