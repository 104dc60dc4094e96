"""`versatileffn bench --quick`, end to end, and what its results become."""

import json

import pytest
import typer
from typer.testing import CliRunner

from versatileffn.bench import layers, suite
from versatileffn.bench.distributions import SHARES
from versatileffn.bench.goals import Goal, Row, goals
from versatileffn.bench.report import BEGIN, END, markdown, write_into
from versatileffn.bench.results import Results
from versatileffn.bench.run import bench
from versatileffn.cli.bench import bench_command
from versatileffn.errors import ConfigError

app = typer.Typer()
app.command()(bench_command)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One real run of every case at tiny sizes."""
    out = tmp_path_factory.mktemp("bench") / "quick.json"
    result = invoke("--quick", "--threads", 1, "--out", out)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return out, result.output


def test_every_case_is_measured_and_kept(quick):
    out, printed = quick
    content = json.loads(out.read_text())
    shares = content["settings"]["shares"]
    cases = suite.suite(shares, seed=0, quick=True)
    assert list(content["cases"]) == [case.name for case in cases]
    assert {case.kind for case in cases} == set(suite.KINDS)
    assert content["settings"]["threads"] == 1
    assert content["settings"]["versions"]["torch"]
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert "Goals" in printed


def test_executed_flops_are_the_planned_ones(quick):
    results = Results.read(quick[0])
    for kind in ("inference", "training"):
        for name, (_, found) in results.found(kind).items():
            for executor, flops in found["flops"].items():
                assert flops["executed"] == flops["planned"], (name, executor)


def test_outputs_were_equal_before_they_were_timed(quick):
    results = Results.read(quick[0])
    for kind in ("inference", "others", "training", "decode", "model"):
        for name, (_, found) in results.found(kind).items():
            assert found["errors"], name
            assert max(found["errors"].values()) <= 0.1, name


def test_a_second_run_skips_what_is_there(quick):
    out, _ = quick
    before = json.loads(out.read_text())["cases"]
    result = invoke("--quick", "--threads", 1, "--out", out)
    assert result.exit_code == 0
    assert f"{len(before)} of {len(before)} cases were measured before" in result.output
    assert json.loads(out.read_text())["cases"] == before


def test_other_settings_are_not_mixed_in(quick):
    result = invoke("--quick", "--threads", 2, "--out", quick[0])
    assert isinstance(result.exception, ConfigError)
    assert "another threads" in str(result.exception)


def test_the_goals_are_judged(quick):
    found = goals(Results.read(quick[0]))
    assert [goal.number for goal in found] == [1, 2, 3, 3, 4, 4, 5, 5, 6, 7]
    assert all(goal.rows for goal in found)
    over, under = (Goal(2, "x", 1.05, True, [Row("a", 1.0), Row("b", v)]) for v in (1.06, 1.05))
    assert (over.met, over.worst.case, under.met) == (False, "b", True)
    assert Goal(3, "x", 1.65, False, [Row("a", 1.6)]).met is False
    assert Goal(3, "x", 1.65, False, []).met is None


def test_the_tables_stand_between_the_markers(quick, tmp_path):
    out, _ = quick
    docs = tmp_path / "performance.md"
    docs.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    result = invoke("--render", out, "--docs", docs)
    assert result.exit_code == 0, result.output
    text = docs.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    results = Results.read(out)
    for title in ("Goals", "Layer, inference", "Layer, training step", "Decode", "Whole model"):
        assert f"### {title}" in text
    packed = results.found("inference")["inference/d64/m64/float32/2.5"][1]["ratios"]
    assert f"{packed['straightforward/packed']['median']:.2f}" in text
    assert "they show that it works" in text or "--quick" in text
    tables = [line for line in markdown(results, out).splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 4 for line in tables)

    docs.write_text("no place\n")
    with pytest.raises(ConfigError, match="add the lines"):
        write_into(docs, results, out)


def test_what_fits_nothing_is_refused(tmp_path):
    out = tmp_path / "x.json"
    for arguments, message in (
        ({"only": ["inferenz"]}, "fits no case"),
        ({"device": "tpu"}, "use cpu or cuda"),
    ):
        with pytest.raises(ConfigError, match=message):
            bench(out, SHARES, quick=True, **arguments)
    assert not out.exists()
    out.write_text("{}")
    with pytest.raises(ConfigError, match="no results file"):
        Results.read(out)


def test_only_what_changed_is_measured_again(tmp_path):
    cases = suite.suite(SHARES, seed=0, quick=True)
    results = Results.open(tmp_path / "x.json", {"seed": 0}, "test")
    results.add(cases[0], "source", 1.0, {})
    results = Results.read(tmp_path / "x.json")
    assert results.missing(cases, "source") == cases[1:]
    assert results.missing(cases, "other source") == cases
    assert results.missing(suite.suite(SHARES, seed=1, quick=True), "source")[0].kind == "inference"


def test_a_difference_stops_the_measurement():
    """The control: an executor that leaves the width pathway out isn't timed against the others."""
    setup = layers.set_up(16, 32, 20, SHARES["2.5"])
    run = layers.runners(setup, ["straightforward", "packed", "no-width"])
    results = {name: [step()] for name, step in run.items()}
    with pytest.raises(layers.MismatchError, match="no-width differs from straightforward"):
        layers.check_equal(results, "straightforward", layers.TOLERANCE["float32"])
    del results["no-width"]
    assert layers.check_equal(results, "straightforward", 1e-4)["packed"] < 1e-5
