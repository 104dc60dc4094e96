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


def open_loops_at(step: int, schedule_steps: int, max_loops: int, share: float) -> int:
    """Loops that tokens may take in optimizer step `step`: 1, 2, … L in L parts of equal length.

    Source: ours. All loops at once lower everybody's loss at first, so that the FFN specialises in
    L passes and leaving early never works.

    Args:
        step: t, optimizer steps already finished, 0-based.
        schedule_steps: T, optimizer steps of the schedule.
        max_loops: L.
        share: of the schedule, in (0, 1], that the L parts fill; afterwards all are open.

    Returns:
        A whole number, 1 to L.
    """
    return min(max_loops, 1 + int(step * max_loops / (share * schedule_steps)))
