"""How fast a model is under each of some budgets, beside a dense one, in turns.

Legend: B sequences, T tokens of each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from versatileffn.analysis import speed
from versatileffn.budget import set_loop_penalty, unchanged_budget
from versatileffn.errors import CheckpointError

DENSE = "dense"
WORKS = ("prefill", "decode")
PROMPT, NEW_TOKENS = 32, 32
"""Tokens that decoding begins after, and adds; fewer where the text's windows are shorter."""
LEAST = 5
"""Rounds."""


def budget_name(point: Mapping[str, float]) -> str:
    """A measured point's, as `clock_budgets` calls it."""
    if "max_loops" in point:
        return f"max_loops={point['max_loops']}"
    return f"penalty={point['penalty']:.6g}"


def clock_budgets(
    model: Any, dense: Any, points: Sequence[Mapping[str, float]], ids_BT: Tensor, seconds: float
) -> dict[str, Any]:
    """Time reading some windows, and decoding after the first one's beginning, greedily.

    Each budget takes its turn beside the dense model in each round; setting it is part of it, as it
    is for whoever sets one for a request.

    Args:
        model: a causal language model of ours; its budget is as before afterwards.
        dense: its dense counterpart, on the same device.
        points: of `calibrate` and `measure_caps`.
        ids_BT: the windows.
        seconds: for each kind of work; at least five rounds.

    Returns:
        for each kind of work `sequences` and `tokens` of a call, `rounds`, and by budget, `dense`
        among them, the spread of `tokens_per_second` and of their ratio to the dense model's in the
        same round, `of_dense`.

    Raises:
        CheckpointError: a result isn't finite, or the cache changes one.
        ResourceError: the windows don't fit.
    """
    budgets: dict[str, Callable[[], None]] = {
        budget_name(point): _setter(model, point) for point in points
    }
    found = {}
    for work in WORKS:
        half = max(1, ids_BT.shape[1] // 2)
        ids = ids_BT if work == "prefill" else ids_BT[:1, : min(PROMPT, half)]
        steps = min(NEW_TOKENS, half)
        speed.check_fits({"reuse": model}, ids.numel(), work, "leave out --clock")
        with unchanged_budget(model):
            run = {DENSE: _checked(DENSE, work, dense, ids, steps, lambda: None)}
            for name, choose in budgets.items():
                run[name] = _checked(name, work, model, ids, steps, choose)
            timings = speed.measure(run, rounds=10_000, seconds=seconds, least=LEAST,
                                    wait=speed.waits_for(ids_BT.device))  # fmt: skip
        tokens = steps if work == "decode" else ids.numel()
        found[work] = {
            "sequences": len(ids),
            "tokens": steps if work == "decode" else ids.shape[1],
            "rounds": len(timings[DENSE]),
            "tokens_per_second": {
                name: speed.spread([tokens / one for one in each]) for name, each in timings.items()
            },
            "of_dense": {name: timings.ratio(DENSE, name) for name in timings},
        }
    return found


def _setter(model: Any, point: Mapping[str, float]) -> Callable[[], None]:
    def choose() -> None:
        model.set_compute_budget(max_loops=point.get("max_loops"))
        set_loop_penalty(model, point.get("penalty"))

    return choose


def _checked(
    name: str, work: str, model: Any, ids_BT: Tensor, steps: int, choose: Callable[[], None]
) -> Callable[[], object]:
    """One budget's work, after a look at its results."""
    choose()
    run = speed.subject(work, model, ids_BT, steps)
    if isinstance(run, speed.Decoding):
        run.check(name)
    if not all(tensor.isfinite().all() for tensor in run()):
        raise CheckpointError(f"{name}: {work} gives numbers that aren't finite: not timed")

    def work_once() -> None:
        choose()
        run()

    return work_once
