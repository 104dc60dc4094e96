"""`python -m benchmarks --quick`, end to end, and what its results become."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import cases, layers, setup
from benchmarks.__main__ import main
from benchmarks.cases import FUNCTIONS, all_cases
from benchmarks.distributions import SHARES
from benchmarks.report import BEGIN, END, GOALS, markdown, read_results
from support.processes import hear_signals
from versatileffn.errors import ConfigError
from versatileffn.workspace.lock import locked

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One real run of every kind of case at tiny sizes."""
    out = tmp_path_factory.mktemp("bench") / "quick.json"
    assert run("--quick", "--threads", 1, "--out", out) == 0
    return out


def test_every_case_is_measured_checked_and_kept(quick):
    results = read_results(quick)
    assert list(results["cases"]) == [case.name for case in all_cases("cpu", quick=True)]
    assert {case["inputs"]["kind"] for case in results["cases"].values()} == set(FUNCTIONS)
    assert {case.name for case in all_cases("cpu")} >= {"decode/d512/b1/bfloat16"}
    for name, case in results["cases"].items():
        if case["inputs"]["kind"] in ("inference", "training", "decode", "model"):
            assert len(case["found"]["errors"]) > 0, name
            assert max(case["found"]["errors"].values()) <= 0.1, name
        for executor, flops in case["found"].get("flops", {}).items():
            assert flops["executed"] == flops["planned"], (name, executor)


def test_a_second_run_measures_only_what_is_missing(quick, tmp_path, capsys):
    out = tmp_path / "q.json"
    shutil.copy(quick, out)
    before = json.loads(out.read_text())
    shown = copy.deepcopy(before["cases"])
    del before["cases"]["memory/d64/bfloat16/2.5"]
    before["cases"]["width/d64/m64/bfloat16/1.0"]["source_sha256"] = "other sources"
    out.write_text(json.dumps(before))
    assert run("--quick", "--threads", 1, "--out", out) == 0
    assert f"{len(shown) - 2} of {len(shown)} cases were measured before" in capsys.readouterr().out
    after = json.loads(out.read_text())["cases"]
    assert after["memory/d64/bfloat16/2.5"]["found"] == shown["memory/d64/bfloat16/2.5"]["found"]
    same = after.keys() - {"memory/d64/bfloat16/2.5", "width/d64/m64/bfloat16/1.0"}
    assert {name: after[name] for name in same} == {name: shown[name] for name in same}


def test_two_runs_at_once_on_one_file_lose_nothing_one_is_refused(quick, capsys):
    before = quick.read_bytes()
    with locked(quick.parent, "it"):
        assert run("--quick", "--threads", 1, "--out", quick, "--overwrite") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: another run is using")
    assert error.count("\n") == 1
    assert quick.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_process_and_goes_on(tmp_path, number):
    out = tmp_path / "stopped.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--threads", "1", "--out", out]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    )
    try:
        assert any(line.startswith("[3/") for line in process.stdout)
        assert psutil.Process(process.pid).children(recursive=True) == []
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    assert len(read_results(out)["cases"]) >= 2
    with locked(tmp_path, "it"):  # nobody holds it any more
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threads", 2), "another threads"),
        (("--threads", 1, "--only", "inferenz"), "fits no case"),
        (("--render", "--docs", "absent.md"), "can't be read"),
    ],
)
def test_what_fits_nothing_is_refused(quick, arguments, message, capsys):
    before = quick.read_bytes()
    assert run("--quick", "--out", quick, *arguments) == 1
    assert message in capsys.readouterr().err
    assert quick.read_bytes() == before


def test_the_tables_stand_between_the_markers(quick, tmp_path, capsys):
    docs = tmp_path / "performance.md"
    docs.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert run("--render", "--out", quick, "--docs", docs) == 0
    text = docs.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    found = read_results(quick)["cases"]["inference/d64/m64/bfloat16/2.5"]["found"]
    assert f"{found['ratios']['straightforward/packed']['median']:.2f}" in text
    docs.write_text("no place\n")
    assert run("--render", "--out", quick, "--docs", docs) == 1
    assert "add the lines" in capsys.readouterr().err


def damaged(content):
    """The content with one part after another of another kind."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        parts = [None, "text", 3, []]
        if isinstance(content[key], dict | list):
            parts += damaged(content[key])
        for part in parts:
            other = copy.copy(content)
            other[key] = part
            yield other


def refusal(path):
    """What reading and showing a file says against it; nothing if nobody reads what is wrong."""
    try:
        markdown(read_results(path), path)
    except ConfigError as error:
        return [str(error)]
    return []


def test_a_damaged_results_file_ends_in_one_line(quick, tmp_path, capsys):
    """Whatever part is missing or wrong: refused, or not a part that anybody reads."""
    content = json.loads(quick.read_text())
    kept = {"inference/d64/m64/bfloat16/2.5", "memory/d64/bfloat16/2.5", "decode/d64/b1/bfloat16"}
    content["cases"] = {name: content["cases"][name] for name in kept}
    out = tmp_path / "damaged.json"
    messages = []
    for other in damaged(content):
        out.write_text(json.dumps(other))
        messages += refusal(out)
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)
    for text in ("", "{", "[]", '{"format": 1}', "[" * 100_000, "\udcff".encode(errors="replace")):
        out.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert run("--quick", "--threads", 1, "--out", out) == 1
        assert capsys.readouterr().err.startswith(f"error: {out} is no whole results file")


def test_goals_are_judged_by_their_worst_value():
    over = {"inference/d1024/a": 1.06, "inference/d1024/b": 1.05, "inference/d512/c": 9.0}
    cases = {
        name: {"found": {"ratios": {"packed/dense": {"median": v, "low": v, "high": v}}}}
        for name, v in over.items()
    }
    at_most = next(goal for goal in GOALS if goal.number == 2)
    assert at_most.cells(cases)[3:] == [
        "1.060", "1.060 to 1.060", "inference/d1024/a", "1 of 2", "**missed**"
    ]  # fmt: skip
    del cases["inference/d1024/a"]
    assert at_most.cells(cases)[-2:] == ["1 of 1", "met"]
    assert at_most.cells({}) is None


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
    results = {name: [layer.runner(name)()] for name in names}
    with pytest.raises(setup.MismatchError, match="no-width differs from straightforward"):
        setup.check_equal(results, "straightforward", setup.TOLERANCE["float32"])
    del results["no-width"]
    assert setup.check_equal(results, "straightforward", 1e-4)["packed"] < 1e-5


def test_a_case_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def differs(**_):
        raise setup.MismatchError("packed differs from straightforward by 1")

    monkeypatch.setitem(cases.FUNCTIONS, "width", differs)
    out = tmp_path / "failed.json"
    only = ["--only", "width/d64/m64/bfloat16/1.0", "--only", "memory"]
    assert run("--quick", "--threads", 1, "--out", out, *only) == 1
    assert "error: not measured: width/d64/m64/bfloat16/1.0\n" in capsys.readouterr().err
    assert list(read_results(out)["cases"]) == ["memory/d64/bfloat16/2.5"]


def test_the_committed_run_can_be_continued():
    """Its cases are today's, so that only other sources or machines measure them anew."""
    known = read_results(ROOT / "benchmarks" / "results" / "cpu.json")["cases"]
    for case in all_cases("cpu"):
        assert known[case.name]["inputs"]["kind"] == case.kind
        assert known[case.name]["inputs"]["settings"].items() >= case.settings.items()
