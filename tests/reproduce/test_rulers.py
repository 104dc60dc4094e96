"""Equal tokens, equal FLOPs, equal time: what an arm is really compared with."""

import dataclasses

import pytest

from versatileffn.reproduce.protocol import protocol
from versatileffn.reproduce.results import Loss, Row
from versatileffn.reproduce.rulers import comparisons, verdict

ARMS = protocol("smoke", table="reuse").to_dict()["arms"]
SIZES = [600, 400]


def row(arm: str, loss: float, control: str, flops: float, seconds: float, seed: int = 0) -> Row:
    documents = [size * loss for size in SIZES]
    after = Loss(loss, loss / 2, 1000, SIZES, documents)
    return Row(
        arm, arm, seed, None, [], after=after, flops_executed=flops, control=control,
        cpu_seconds=seconds,
    )  # fmt: skip


ROWS = [
    row("base", 4.0, "dense", 1.0, 10),
    row("scratch-dense-x4", 3.6, "base", 4.0, 25),
    row("scratch-dense-longer", 3.5, "base", 1.0, 30),
    row("scratch-2-loop", 3.9, "base", 2.0, 17.32),
    row("dense", 3.8, "dense", 1.0, 10),
    row("dense-x4", 3.4, "dense", 4.0, 25),
    row("2-loop", 3.5, "dense", 2.0, 17.32),
]


def found(rows: list[Row]) -> dict[tuple[str, str, str], float]:
    return {
        (record["question"], record["phase"], record["arm"]): record["difference"]["mean"]
        for record in comparisons(rows, ARMS)
    }


def test_each_question_has_its_own_ruler() -> None:
    assert found(ROWS) == pytest.approx(
        {
            ("tokens", "from scratch", "scratch-2-loop"): 3.9 - 4.0,
            ("flops", "from scratch", "scratch-2-loop"): 3.9 - 3.8,  # half-way between 4.0 and 3.6
            ("time", "from scratch", "scratch-2-loop"): 3.9 - 3.75,  # half-way to the longer run
            ("tokens", "continued", "2-loop"): 3.5 - 3.8,
            ("flops", "continued", "2-loop"): 3.5 - 3.6,
        },
        abs=1e-4,
    )


def test_without_a_ruler_nothing_is_read_off_it() -> None:
    rows = [r for r in ROWS if r.arm not in ("scratch-dense-x4", "dense-x4")]
    assert {question for question, *_ in found(rows)} == {"tokens", "time"}
    demo = protocol("smoke").to_dict()["arms"]
    assert comparisons(ROWS[:1] + ROWS[4:5] + ROWS[6:], demo) == []


def test_an_arm_slower_than_every_ruler_meets_the_longest() -> None:
    rows = [dataclasses.replace(r, cpu_seconds=99.0) if "2-loop" in r.arm else r for r in ROWS]
    assert found(rows)["time", "from scratch", "scratch-2-loop"] == pytest.approx(3.9 - 3.5)


def test_a_curriculum_is_compared_with_the_arm_without_it() -> None:
    pair = [
        row("versatile", 3.6, "dense", 2.0, 20),
        row("versatile-curriculum", 3.5, "dense", 2.0, 20),
    ]
    assert found([*ROWS, *pair])["curriculum", "all", "versatile-curriculum"] == pytest.approx(-0.1)
    assert not any(question == "curriculum" for question, *_ in found([*ROWS, pair[1]]))


def test_pairs_are_of_one_seed() -> None:
    """Seeds that differ by far leave the differences as they are."""
    shifted = [
        dataclasses.replace(
            r,
            seed=1,
            after=Loss(9 + r.after.nats_per_token, 4, 1000, SIZES, [9.0 * s for s in SIZES]),
        )
        for r in ROWS
        if r.after
    ]
    assert found([*ROWS, *shifted]) == pytest.approx(found(ROWS))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "lower"),
        ({"mean": 0.1}, "higher"),
        ({"p_holm": 0.06}, "none"),
        ({"document_error": 0.06}, "none"),
        ({"n": 2}, "undecided"),
    ],
)
def test_a_verdict_needs_seeds_p_and_documents(changes: dict[str, float], expected: str) -> None:
    difference = {"mean": -0.1, "n": 3, "p_holm": 0.01, "document_error": 0.01}
    assert verdict({**difference, **changes}) == expected
