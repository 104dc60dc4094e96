"""`python -m benchmarks --quick`, end to end, and what its results become."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from benchmarks import __main__, cases, layers, setup
from benchmarks.__main__ import main
from benchmarks.cases import FUNCTIONS, all_cases
from benchmarks.distributions import SHARES
from benchmarks.report import BEGIN, END, GOALS, goal_row, read_results
from support.forked import running
from versatileffn.workspace.lock import locked

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One real run of every kind of case at tiny sizes."""
    out = tmp_path_factory.mktemp("bench") / "quick.json"
    assert run("--quick", "--out", out) == 0
    return out


def test_every_case_is_measured_checked_and_kept(quick):
    results = read_results(quick)
    assert list(results["cases"]) == list(all_cases("cpu", quick=True))
    assert {name.partition("/")[0] for name in results["cases"]} == set(FUNCTIONS)
    for name, case in results["cases"].items():
        if not name.startswith(("width/", "memory/")):
            assert len(case["found"]["errors"]) > 0, name
            assert max(case["found"]["errors"].values()) <= 0.1, name


def test_a_second_run_measures_only_what_is_missing(quick, tmp_path, capsys):
    out = tmp_path / "q.json"
    shutil.copy(quick, out)
    before = json.loads(out.read_text())
    shown = copy.deepcopy(before["cases"])
    gone, other = "memory/d1024/bfloat16/2.5", "width/d1024/m512/bfloat16/1.0"
    del before["cases"][gone]
    before["cases"][other]["inputs"]["settings"] = {"tokens": 1}
    out.write_text(json.dumps(before))
    assert run("--quick", "--out", out) == 0
    assert f"{len(shown) - 2} of {len(shown)} cases were measured before" in capsys.readouterr().out
    after = json.loads(out.read_text())["cases"]
    assert (
        after["memory/d1024/bfloat16/2.5"]["found"] == shown["memory/d1024/bfloat16/2.5"]["found"]
    )
    same = after.keys() - {"memory/d1024/bfloat16/2.5", "width/d1024/m512/bfloat16/1.0"}
    assert {name: after[name] for name in same} == {name: shown[name] for name in same}


def test_two_runs_at_once_on_one_file_lose_nothing_one_is_refused(quick, capsys):
    before = quick.read_bytes()
    with locked(quick.parent, "it"):
        assert run("--quick", "--out", quick) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: another run is using")
    assert error.count("\n") == 1
    assert quick.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_process_and_goes_on(tmp_path, number):
    out = tmp_path / "stopped.json"
    program = "import sys; from benchmarks.__main__ import main; sys.exit(main())"
    with running("-c", program, "--quick", "--out", out) as process:
        process.wait_for("\n[3/")
        (pid,) = process.processes
        assert psutil.Process(pid).children(recursive=True) == []
        os.kill(pid, number)
        ended = process.ended()
    assert ended.codes == [130 if number == signal.SIGINT else -number]
    assert "Traceback" not in ended.stderr
    assert len(read_results(out)["cases"]) >= 2
    with locked(tmp_path, "it"):  # nobody holds it any more
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quick", "--only", "inferenz"), "fits no case"),
        ((), "another quick"),
    ],
)
def test_what_fits_nothing_is_refused(quick, arguments, message, capsys):
    before = quick.read_bytes()
    assert run("--out", quick, *arguments) == 1
    assert message in capsys.readouterr().err
    assert quick.read_bytes() == before


def test_the_tables_stand_between_the_markers(quick, tmp_path, monkeypatch):
    docs = tmp_path / "performance.md"
    docs.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(__main__, "PAGE", docs)
    assert run("--render", "--out", quick) == 0
    text = docs.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    found = read_results(quick)["cases"]["inference/d1024/m512/bfloat16/2.5"]["found"]
    assert f"{found['ratios']['straightforward/packed']['median']:.2f}" in text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}'])
def test_what_is_no_results_file_stays_and_ends_in_one_line(text, tmp_path, capsys):
    out = tmp_path / "other.json"
    out.write_text(text)
    for mode in ("--quick", "--render"):
        assert run(mode, "--out", out) == 1
        assert capsys.readouterr().err.startswith(f"error: {out} is no results file")
    assert out.read_text() == text


def test_goals_are_judged_by_their_worst_value():
    over = {"inference/d1024/a": 1.06, "inference/d1024/b": 1.05, "inference/d512/c": 9.0}
    cases = {
        name: {"found": {"ratios": {"packed/dense": {"median": v, "low": v, "high": v}}}}
        for name, v in over.items()
    }
    at_most = next(goal for goal in GOALS if goal[0] == 2)
    assert goal_row(cases, at_most)[3:] == [
        "1.060", "1.060 to 1.060", "inference/d1024/a", "1 of 2", "**missed**"
    ]  # fmt: skip
    del cases["inference/d1024/a"]
    assert goal_row(cases, at_most)[-2:] == ["1 of 1", "met"]
    assert goal_row({}, at_most) == []


def test_a_dense_layer_saves_what_its_formula_says():
    """H, H/rms, times the norm's weight; 1/rms; gate, silu(gate), up, and their product."""
    layer = {"d_model": 16, "d_hidden": 32, "shares": SHARES["2.5"], "tokens": 8}
    found = layers.memory({}, **layer)["memory"]
    assert found["dense"]["saved_values_per_token"] == 3 * 16 + 4 * 32 + 1
    packed, slow = (found[n]["saved_values_per_token"] for n in ("packed", "straightforward"))
    assert 0 < packed < slow


def test_a_difference_stops_the_measurement():
    """The control: an executor that leaves the width pathway out isn't timed against the others."""
    layer = setup.set_up(16, 32, 20, SHARES["2.5"])
    names = ["straightforward", "packed", "no-width"]
    results = {name: layer.step(name)() for name in names}
    with pytest.raises(AssertionError, match="no-width differs from straightforward"):
        setup.check_equal(results, "straightforward", setup.TOLERANCE["float32"])
    del results["no-width"]
    assert setup.check_equal(results, "straightforward", 1e-4)["packed"] < 1e-5


def test_a_case_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def differs(**_):
        raise AssertionError("packed differs from straightforward by 1")

    monkeypatch.setitem(cases.FUNCTIONS, "width", differs)
    out = tmp_path / "failed.json"
    only = ["--only", "width/d1024/m512/bfloat16/1.0", "--only", "memory"]
    assert run("--quick", "--out", out, *only) == 1
    assert "error: not measured: width/d1024/m512/bfloat16/1.0\n" in capsys.readouterr().err
    assert list(read_results(out)["cases"]) == ["memory/d1024/bfloat16/2.5"]


def test_the_committed_run_is_of_todays_cases():
    known = read_results(ROOT / "benchmarks" / "results" / "cpu.json")["cases"]
    for name, settings in all_cases("cpu", quick=False).items():
        assert known[name]["inputs"]["settings"].items() >= settings.items()
