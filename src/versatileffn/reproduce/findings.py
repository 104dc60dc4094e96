"""What the rows say and don't say, in sentences; no claim that the numbers can't carry."""

from collections.abc import Mapping, Sequence
from typing import Any

from versatileffn.reproduce.numbers import digits_for, probability, signed
from versatileffn.reproduce.results import BASE, CONTROL

LEVEL = 0.05


def findings(results: Mapping[str, Any]) -> list[str]:
    """Sentences beside the table, which has the numbers.

    Args:
        results: the content of `results.json`.
    """
    by_arm = {record["arm"]: record for record in results["summary"]}
    sentences = []
    base, control = by_arm.get(BASE), by_arm.get(CONTROL)
    if base and control and base["difference"]:
        change = -base["difference"]["mean"]
        verb = "lowers" if change < 0 else "raises"
        sentences.append(
            f"Continuing the dense model on the same data {verb} its held-out loss by "
            f"{signed(abs(change), digits_for(change))[1:]} nats. That part of any gain over the "
            "base is the extra training, not the architecture, so every other model is compared "
            "with the continued one."
        )
    others = [r for r in results["summary"] if r["difference"] and r["arm"] != BASE]
    for against in dict.fromkeys(control_of(r) for r in others):
        family = [r for r in results["summary"] if r["difference"] and control_of(r) == against]
        sentences.append(_verdicts([r for r in family if r["arm"] != BASE], family))
    sentences += _conversions(results["summary"], base)
    diverged = [r["title"] for r in results["summary"] if r["diverged"]]
    if diverged:
        sentences.append(
            f"Some training diverged: {', '.join(diverged)}. Such models are in no mean."
        )
    return list(dict.fromkeys(sentences))


def control_of(record: Mapping[str, Any]) -> str:
    """What an arm is compared with; records of an earlier version don't say."""
    return str(record.get("control", CONTROL))


def _verdicts(others: Sequence[Mapping[str, Any]], family: Sequence[Mapping[str, Any]]) -> str:
    """Which arms differ from their control, after correcting for how many are asked about."""
    tested = [record for record in others if record["difference"]["p_holm"] is not None]
    if not tested:
        return (
            "One seed has no error bar over runs: any of these differences may be chance, however "
            "small its error over documents. Ask for three seeds or more (--seeds 3)."
        )
    count = sum(1 for record in family if record["difference"]["p"] is not None)
    groups: dict[str, list[str]] = {"lower": [], "higher": [], "none": []}
    for record in tested:
        difference = record["difference"]
        size = f"{record['title']} (p = {probability(difference['p_holm'])})".replace("= <", "<")
        if difference["p_holm"] >= LEVEL:
            groups["none"].append(record["title"])
        else:
            groups["lower" if difference["mean"] < 0 else "higher"].append(size)
    words = {"lower": "a lower loss", "higher": "a higher loss", "none": "no difference shown"}
    parts = [f"{words[name]}: {', '.join(arms) or 'none'}" for name, arms in groups.items()]
    seeds = tested[0]["difference"]["n"]
    against = "Against the control" if control_of(tested[0]) == CONTROL else "Against the base"
    return (
        f"{against}, over {seeds} seeds and at the {100 * LEVEL:.0f} % level after "
        f"Holm's correction for {count} comparisons: {'; '.join(parts)}. The intervals in the "
        "table are each its own 95 %, without that correction."
    )


def _conversions(summary: Sequence[Mapping[str, Any]], base: Mapping[str, Any] | None) -> list[str]:
    """How far each form starts from the base."""
    if base is None or base["nats_per_token"] is None:
        return []
    starts = {
        r["title"]: r["nats_before"] - base["nats_per_token"]
        for r in summary
        if r["arm"] not in (BASE, CONTROL) and r["nats_before"] is not None
    }
    exact = [title for title, gap in starts.items() if abs(gap) < 1e-5]
    far = [
        f"{title} {signed(gap, digits_for(gap))}"
        for title, gap in starts.items()
        if abs(gap) >= 1e-5
    ]
    text = []
    if exact:
        text.append(f"at the base's loss: {', '.join(exact)}")
    if far:
        text.append(f"away from it, in nats: {', '.join(far)}")
    return [f"Converted, before any training, models start {'; '.join(text)}."] if text else []
