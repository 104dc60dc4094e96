"""The page says what the committed soak found, what it found holds, and the soak could tell."""

import json
import runpy
from pathlib import Path

import pytest

from soak.watch import Sample, after, growth

MAIN = runpy.run_path(str(Path(__file__).with_name("__main__.py")), run_name="paragraph")
FOUND = json.loads(MAIN["RESULTS"].read_text())


def test_the_page_is_of_the_committed_result_and_all_of_it_holds():
    assert MAIN["paragraph"](FOUND) in MAIN["PAGE"].read_text()
    assert FOUND["wrong"] == MAIN["verdict"](FOUND) == []


@pytest.mark.parametrize("change", [
    {"endings": []}, {"logged_alike": FOUND["logged"] - 1}, {"mib_per_hour": 100.0},
    {"mib_per_hour": None}, {"handles": [20, 60]}, {"leftovers": ["x"]}, {"faults": ["x"]},
], ids=str)  # fmt: skip
def test_each_fault_would_be_told(change):
    assert MAIN["verdict"](FOUND | change)


def test_growth_is_a_slope_after_the_warm_up():
    samples = [Sample(second, 100 + min(second, 60) + second / 36, 9, 1) for second in range(600)]
    assert growth(after(samples, 60)) == pytest.approx(100)
    assert growth(samples) > 150
    assert growth(samples[:9]) is None
