import pytest

from versatileffn.analysis.speed import Timings, measure, spread


class Bench:
    """A fake clock that callables move forward."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def work(self, name, seconds):
        durations = iter(seconds) if isinstance(seconds, list) else None

        def run():
            self.calls.append(name)
            self.now += next(durations) if durations else seconds

        return run


def all_of(value):
    return {"median": value, "low": value, "high": value}


def test_callables_take_turns_and_ratios_are_taken_by_round():
    bench = Bench()
    # Round by round everything gets slower, ratios stay: that is why they are taken in pairs.
    subjects = {
        "slow": bench.work("slow", [9, 2, 20, 200]),
        "fast": bench.work("fast", [9, 1, 10, 100]),
    }
    timings = measure(subjects, rounds=3, warmup=1, clock=lambda: bench.now)
    assert bench.calls == ["slow", "fast", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert timings == {"slow": [2, 20, 200], "fast": [1, 10, 100]}
    assert timings.ratio("slow", "fast") == all_of(2)
    assert timings.ratio("slow", "fast", factor=4) == all_of(0.5)
    assert timings.spreads()["fast"] == {"median": 10, "low": 5.5, "high": 55, "rounds": 3}


@pytest.mark.parametrize(
    ("budget", "rounds"),
    [
        ({"rounds": 5, "seconds": 1000}, 5),
        ({"rounds": 50, "seconds": 9.5, "least": 2}, 10),
        ({"rounds": 50, "seconds": 0.1, "least": 4}, 4),
        ({"rounds": 2, "seconds": 0.1, "least": 4}, 2),
    ],
)
def test_it_stops_at_the_rounds_or_at_the_seconds_but_not_too_early(budget, rounds):
    bench = Bench()
    timings = measure({"one": bench.work("one", 1.0)}, clock=lambda: bench.now, **budget)
    assert len(timings["one"]) == rounds


def test_the_device_is_waited_for_before_each_reading_of_the_clock():
    bench, pending = Bench(), []

    def launch():
        pending.append(5.0)  # asynchronous work: no time passes yet

    def synchronize():
        while pending:
            bench.now += pending.pop()

    timings = measure({"kernel": launch}, rounds=2, wait=synchronize, clock=lambda: bench.now)
    assert timings["kernel"] == [5.0, 5.0]


def test_spread():
    assert spread([3.0]) == all_of(3)
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == {"median": 3, "low": 2, "high": 4}
    assert Timings({"a": [1.0, 4.0], "b": [1.0, 1.0]}).ratio("a", "b")["median"] == 2.5
