"""What changes with progress: τ, and how many loops are open. Pure functions of the step."""


def tau_at(
    step: int, schedule_steps: int, start: float, end: float, anneal_fraction: float
) -> float:
    """Temperature τ of the loop choice in optimizer step `step`.

    τ(t) = start · (end/start)^(t / (anneal_fraction · T)), held at `end` afterwards. It depends on
    nothing but the step, so a resumed run has exactly the temperatures of an uninterrupted one.

    Source: Algorithm 1 gives the two ends (5.0 and 0.1) and the exponential form; the fraction
    0.96 is our decision.

    Args:
        step: t, optimizer steps already finished, 0-based.
        schedule_steps: T, optimizer steps of the schedule, by default those of the whole run.
        start: τ at step 0, dimensionless, > 0.
        end: τ after annealing, dimensionless, > 0. `start == end` keeps τ constant.
        anneal_fraction: share of the run, in (0, 1], over which τ is annealed.

    Returns:
        τ, between `start` and `end` inclusive.
    """
    progress = step / (anneal_fraction * schedule_steps)
    if progress >= 1:
        return end
    return start * (end / start) ** progress


def opened_at(step: int, schedule_steps: int, max_loops: int, share: float) -> tuple[int, float]:
    """Loops that tokens may take in a step, 1, 2, … L in L parts of equal length, and how much of
    the newest one's part is over.

    Source: ours. The FFN learns to serve few passes before it may specialise in many.

    Args:
        step: t, optimizer steps already finished, 0-based.
        schedule_steps: T, optimizer steps of the schedule.
        max_loops: L.
        share: of the schedule, in (0, 1], that the L parts fill; afterwards all are open.

    Returns:
        a whole number, 1 to L, and a share that rises from 0 to 1 in each part but the first, in
        which, as in the end, it is 1.
    """
    parts = step * max_loops / (share * schedule_steps)
    open_loops = min(max_loops, 1 + int(parts))
    return open_loops, min(1.0, parts - open_loops + 1) if open_loops > 1 else 1.0
