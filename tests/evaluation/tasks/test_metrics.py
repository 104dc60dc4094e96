"""Predictions, errors and paired differences against numbers worked out by hand."""

import math

import pytest

from versatileffn.errors import ConfigError, DataError
from versatileffn.evaluation.tasks.catalogue import PAPER8, find_tasks
from versatileffn.evaluation.tasks.metrics import (
    Estimate,
    mean_over_items,
    mean_over_tasks,
    predictions,
)
from versatileffn.evaluation.tasks.records import Record
from versatileffn.evaluation.tasks.scores import compare_records, score_tasks


def record(task, index, label, sums, characters, document="d"):
    cut = [0] * len(sums)
    found = predictions(sums, characters)
    return Record(task, index, label, document, "r", sums, characters, cut, found, "tree")


def test_both_len_norm_conventions_by_hand():
    # sums -2, -4.2, -8 nats; 2, 4, 9 characters with the space, 1, 3, 8 without it:
    # per character -1, -1.05, -0.889 with it; -2, -1.4, -1 without it
    assert predictions([-2.0, -4.2, -8.0], [2, 4, 9]) == {
        "acc": 0,
        "len_norm_without_leading_space": 2,
        "len_norm_with_leading_space": 2,
    }
    # -2 and -6 nats; with the space -2/2 = -1 beats -6/5 = -1.2; without -2/1 loses to -6/4 = -1.5
    assert predictions([-2.0, -6.0], [2, 5]) == {
        "acc": 0,
        "len_norm_without_leading_space": 1,
        "len_norm_with_leading_space": 0,
    }


def test_the_first_of_equals_is_predicted_and_an_empty_text_never():
    assert set(predictions([-3.0, -3.0], [4, 4]).values()) == {0}
    assert predictions([-1.0, -9.0], [1, 4])["len_norm_without_leading_space"] == 1


def test_score_and_error_by_hand():
    piqa, sciq = find_tasks("piqa,sciq")
    piqa_rows = [  # right: with the space 1 of 3, without it 2 of 3
        record("piqa", 0, 1, [-2.0, -6.0], [2, 5]),
        record("piqa", 1, 0, [-1.0, -9.0], [5, 5]),
        record("piqa", 2, 1, [-1.0, -9.0], [5, 5]),
    ]
    sciq_rows = [record("sciq", i, 0, [-1.0, -2.0], [5, 5]) for i in range(4)]
    found = score_tasks([piqa, sciq], {"piqa": piqa_rows, "sciq": sciq_rows})
    paper, olmo = found["tasks"]["piqa"]["paper"], found["tasks"]["piqa"]["olmo_eval"]
    assert paper["metric"] == "len_norm_without_leading_space"
    assert olmo["metric"] == "len_norm_with_leading_space"
    assert (paper["score"], olmo["score"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    error = math.sqrt((2 / 3) * (1 / 3) / 2)  # p(1 − p)/(n − 1)
    assert paper["standard_error"] == pytest.approx(error)
    assert found["tasks"]["sciq"]["paper"] == {"metric": "acc", "score": 1.0, "standard_error": 0.0}
    mean = found["mean"]["paper"]
    assert mean["score"] == pytest.approx((2 / 3 + 1) / 2)
    assert mean["standard_error"] == pytest.approx(error / 2)


def test_paired_interval_by_hand():
    (sciq,) = find_tasks("sciq")
    first_right, second_right = [1, 1, 0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0, 1, 0]
    first, second = (
        [record("sciq", i, 0, [-1.0, -2.0] if r else [-2.0, -1.0], [5, 5], f"d{i}")
         for i, r in enumerate(right)]
        for right in (first_right, second_right)
    )  # fmt: skip
    found = compare_records([sciq], {"sciq": first}, {"sciq": second})
    row = found["tasks"]["sciq"]["paper"]
    # differences 0 0 1 1 0 −1 1 0: mean 1/4, squares sum to 4 − 8/16 = 3.5, over n − 1 = 7
    error = math.sqrt(0.5 / 8)
    assert row["difference"] == pytest.approx(0.25)
    assert row["standard_error"] == pytest.approx(error)
    assert row["interval_95"] == pytest.approx([0.25 - 1.959964 * error, 0.25 + 1.959964 * error])
    assert (row["only_first_right"], row["only_second_right"]) == (1, 3)
    assert found["mean"]["paper"]["difference"] == pytest.approx(0.25)
    with pytest.raises(DataError, match="answered different items of sciq"):
        compare_records([sciq], {"sciq": first}, {"sciq": second[:-1]})


def test_one_item_has_no_error():
    assert mean_over_items([1.0]) == Estimate(1.0, None)
    assert mean_over_tasks([Estimate(1.0, None), Estimate(0.0, 0.1)]) == Estimate(0.5, None)
    assert Estimate(1.0, None).interval_95() is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [("helaswag", "hellaswag"), ("ARC-c", "arc_challenge"), ("OBQA", "openbook_qa"),
     ("paper-8", "paper8"), ("wino_grande", "winogrande")],
)  # fmt: skip
def test_an_unknown_task_gets_a_suggestion(given, meant):
    with pytest.raises(ConfigError, match=f"no task '{given}': did you mean '{meant}'"):
        find_tasks(f"piqa,{given}")


def test_tasks_by_name():
    assert find_tasks("paper8") == list(PAPER8)
    assert [task.label for task in find_tasks("sciq, piqa,sciq")] == ["sciq", "piqa"]
    with pytest.raises(ConfigError, match="choose from paper8, piqa"):
        find_tasks("qqqq")
    with pytest.raises(ConfigError, match="no task was named"):
        find_tasks(" ,")
