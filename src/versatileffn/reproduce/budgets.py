"""What a budget costs on language: held-out loss where no token loops more often than a cap."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from versatileffn.reproduce.results import Row, adjust
from versatileffn.reproduce.statistics import interval

CRITERION = (
    "Written down before the run: an arm degrades more gracefully than `{}` if its loss is lower "
    "under a budget, paired by seed, with p < 0.05 after Holm's correction over all budgets and "
    "arms of this table; and it pays for that if its loss with all loops is higher by the same "
    "test."
)


def under_budgets(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Loss of each arm under each budget, and what it is minus that of the first such arm.

    Args:
        rows: all models of all seeds; those that were not measured under budgets are left out.

    Returns:
        `reference`, the first arm that was measured so; `criterion`; and `arms`, each with `arm`,
        `title`, `loss` (nats per token by budget, a mean over seeds) and `difference` (by budget,
        an interval over seeds with `p_holm`; None of the reference). None without such rows.
    """
    measured = [row for row in rows if row.capped]
    if not measured:
        return None
    reference = measured[0].arm
    its = {row.seed: row.capped for row in measured if row.arm == reference}
    arms: list[dict[str, Any]] = []
    for arm in dict.fromkeys(row.arm for row in measured):
        mine = [row for row in measured if row.arm == arm]
        paired = [(row.capped, its[row.seed]) for row in mine if row.seed in its]
        caps = list(mine[0].capped)
        differences = {
            cap: {
                **dataclasses.asdict(interval([one[cap] - other[cap] for one, other in paired])),
                "p_holm": None,
            }
            for cap in caps
            if arm != reference and paired
        }
        loss = {cap: statistics.fmean(row.capped[cap] for row in mine) for cap in caps}
        arms.append(
            {"arm": arm, "title": mine[0].title, "loss": loss, "difference": differences or None}
        )
    adjust([each for arm in arms for each in (arm["difference"] or {}).values()])
    return {"reference": reference, "criterion": CRITERION.format(reference), "arms": arms}
