"""`versatileffn reproduce` from text to report; rerun; killed and run again."""

import dataclasses
import json
import shutil
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from support.forked import VERB, Running, forked, running
from versatileffn.cli.main import main
from versatileffn.data.order import window_order
from versatileffn.data.packed import PackedDataset
from versatileffn.errors import DivergedError
from versatileffn.reproduce import steps
from versatileffn.reproduce.protocol import protocol
from versatileffn.reproduce.run import reproduce
from versatileffn.training.config import TrainConfig

CLOCKS = ("tokens_per_second", "cpu_seconds")
ARMS = ["base", "dense", "2-loop", "4-loop", "moe", "versatile", "versatile-learned"]
SOURCES = Path(json.__file__).parents[1]  # the standard library: real text on every machine


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for path in sorted((SOURCES / "email").glob("*.py")):
        (folder / f"{path.stem}.txt").write_text(path.read_text())
    return folder


def command(out: Path, corpus: Path, *more: str) -> list[str]:
    arguments = ["--scale", "smoke", "--out", str(out), "--corpus", str(corpus), *more]
    return [VERB, "reproduce", *arguments]


def run(out: Path, corpus: Path, *more: str) -> str:
    done = forked(*command(out, corpus, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read(out: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"results.json is not strict JSON: {name}")

    return json.loads((out / "results.json").read_text(), parse_constant=refuse)


def measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows without what differs between two runs by its nature."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in results["rows"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, run(out, corpus)


def test_text_to_report(finished: tuple[Path, str]) -> None:
    out, output = finished
    results = read(out)
    assert [row["arm"] for row in results["rows"]] == ARMS
    for name in ("report.md", "report.html", "figures/loss-curves.svg"):
        assert (out / name).stat().st_size > 1000
    assert str(out / "report.html") in output.splitlines()[-1]
    assert "left" in output
    assert "[ 1/20] tokenize the corpus …" in output


def test_rows_hold_what_was_really_measured(finished: tuple[Path, str]) -> None:
    rows = {row["arm"]: row for row in read(finished[0])["rows"]}
    base, dense, versatile = rows["base"], rows["dense"], rows["versatile"]
    uniform = 5.70  # ln 300: a model that knows nothing
    assert base["after"]["nats_per_token"] < uniform - 0.5
    assert dense["before"] == pytest.approx(base["after"]["nats_per_token"], rel=1e-6)
    assert dense["after"]["nats_per_token"] < dense["before"]
    # Learned gains convert exactly; the paper's form doesn't.
    before = base["after"]["nats_per_token"]
    assert rows["versatile-learned"]["before"] == pytest.approx(before, abs=1e-5)
    for arm, exact in (("versatile-learned", True), ("versatile", False), ("4-loop", False)):
        stage = json.loads((finished[0] / f"seed-0/{arm}/convert/stage.json").read_text())
        assert (stage["summary"]["logit_difference"] < 1e-5) == exact, arm
    for row in rows.values():
        assert row["flops_executed"] == pytest.approx(row["flops_ours"], rel=1e-9)
        assert row["tokens_per_second"] > 0
        assert row["curve"][0][0] == 0
        assert row["curve"][-1][0] == (6144 if row["arm"] == "base" else 3072)
        assert row["curve"][-1][1] == pytest.approx(row["after"]["nats_per_token"], rel=1e-6)
    assert rows["2-loop"]["flops_executed"] == 2 * base["flops_executed"]
    assert rows["moe"]["parameters"] > versatile["parameters"] > base["parameters"]
    assert versatile["flops_executed"] == pytest.approx(
        versatile["mean_loops"] * base["flops_executed"]
    )
    assert [len(layer["loop_share"]) for layer in versatile["layers"]] == [4, 4]


def test_a_further_arm_is_added_to_a_finished_run(
    finished: tuple[Path, str], corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    output = run(out, corpus, "--arms", "all")
    assert output.count("finished before, skipped") == 20
    rows = {row["arm"]: row for row in read(out)["rows"]}
    assert list(rows) == [*ARMS, "mor"]
    assert measured(read(out))[:7] == measured(read(finished[0]))
    mor, base = rows["mor"], rows["base"]
    assert mor["before"] == pytest.approx(base["after"]["nats_per_token"], abs=1e-5)
    assert mor["flops_executed"] == pytest.approx(mor["mean_loops"] * base["flops_executed"])
    assert "Token choice (MoR)" in (out / "report.md").read_text()


def test_every_run_saw_the_same_data_in_the_same_order(finished: tuple[Path, str]) -> None:
    """Checksums of the tokens that each step was really fed, against the windows of the order."""
    out = finished[0]
    chosen = protocol("smoke")
    dataset = PackedDataset(out / "tokenize/tokens", "train", chosen.seq_len)
    order = window_order(len(dataset), 0, 0)
    at_once = chosen.batch_tokens // chosen.seq_len
    for arm in ARMS:
        log = (out / f"seed-0/{arm}/train/run/log.jsonl").read_text().splitlines()
        fed = {e["step"]: e["tokens_crc32"] for e in map(json.loads, log) if "tokens_crc32" in e}
        assert len(fed) == (8 if arm == "base" else 12)
        for step, checksum in fed.items():
            windows = order[(step - 1) * at_once : step * at_once]
            tokens = torch.stack([dataset[index]["input_ids"] for index in windows])
            assert zlib.crc32(tokens.numpy().tobytes()) == checksum, (arm, step)


def test_workers_change_nothing(finished: tuple[Path, str], corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reproduce(protocol("smoke", ["moe", "versatile"]), out, corpus=str(corpus), workers=2)
    alone = [
        row
        for row in measured(read(finished[0]))
        if row["arm"] in ("base", "dense", "moe", "versatile")
    ]
    assert measured(read(out)) == alone


def test_a_changed_model_is_noticed_and_made_again(
    finished: tuple[Path, str], corpus: Path, tmp_path: Path
) -> None:
    """What was made from it stays, for it comes out the same; so do all numbers."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    weights = out / "seed-0/4-loop/convert/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    shards = out / "tokenize/tokens/val"
    (shard,) = list(shards.glob("*.ds"))[:1]
    shard.write_bytes(b"\0" * shard.stat().st_size)
    output = run(out, corpus)
    assert output.count("its files have changed, set aside and done again") == 2
    assert output.count("finished before, skipped") == 18
    assert measured(read(out)) == measured(read(finished[0]))


def test_an_arm_that_diverges_is_told_and_the_others_are_compared(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = steps.train

    def train(config: TrainConfig) -> Path:
        if "moe" in config.run.output_dir:
            raise DivergedError(7, "the loss is nan")
        return real(config)

    monkeypatch.setattr(steps, "train", train)
    arms = [arm for arm in protocol("smoke").arms if arm.name in ("dense", "moe")]
    chosen = dataclasses.replace(protocol("smoke"), arms=tuple(arms))
    for _ in range(2):  # and again, from what is there
        report = reproduce(chosen, tmp_path / "out", corpus=str(corpus))
        moe = read(tmp_path / "out")["rows"][2]
        assert (moe["arm"], moe["diverged"], moe["after"]) == (
            "moe",
            "step 7: the loss is nan",
            None,
        )
        assert "MoE (diverged: seed 0)" in report.read_text()


def test_a_rerun_skips_every_stage(finished: tuple[Path, str], corpus: Path) -> None:
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.glob("**/stage.json")}
    rows = measured(read(out))
    output = run(out, corpus)
    assert output.count("finished before, skipped") == len(before) == 20
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert measured(read(out)) == rows


@pytest.mark.parametrize("moment", ["seed-0/base/train", "seed-0/versatile/train"])
def test_killed_and_run_again_gives_the_same_numbers(
    finished: tuple[Path, str], corpus: Path, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"
    # In the middle of training: a checkpoint is there, the end isn't.
    with running(*command(out, corpus)) as process:
        wait_for(out / moment / "run/checkpoints", "checkpoint-*", process)
    assert not (out / "results.json").exists()
    assert not (out / moment / "stage.json").exists()
    output = run(out, corpus)
    assert "resuming an interrupted attempt" in output
    assert "resumed after step" in output
    assert measured(read(out)) == measured(read(finished[0]))


def wait_for(folder: Path, pattern: str, process: Running) -> None:
    deadline = time.monotonic() + 600
    while not any(folder.glob(pattern)):
        assert not process.has_ended(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_another_corpus_in_the_same_folder_keeps_what_was_there(
    finished: tuple[Path, str], corpus: Path, tmp_path: Path
) -> None:
    """Another corpus is another experiment; the first one's stages are moved, not deleted."""
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(finished[0], out)
    other.mkdir()
    for path in sorted(corpus.iterdir())[:15]:
        (other / path.name).write_text(path.read_text())
    output = run(out, other)
    assert "skipped" not in output
    assert measured(read(out)) != measured(read(finished[0]))
    assert len(list((out / "superseded").iterdir())) == 20
    for stage in finished[0].glob("**/stage.json"):
        content = stage.read_text()
        kept = (out / "superseded").glob("*/stage.json")
        assert any(path.read_text() == content for path in kept), stage


def test_more_seeds_are_added_to_a_run_even_if_it_was_moved(
    finished: tuple[Path, str], corpus: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished[0], moved)
    output = run(moved, corpus, "--seeds", "2")
    assert output.count("finished before, skipped") == 20
    results = read(moved)
    assert measured(results)[:7] == measured(read(finished[0]))
    assert [row["seed"] for row in results["rows"]] == [0] * 7 + [1] * 7
    losses = [row["after"]["nats_per_token"] for row in results["rows"]]
    versatile = next(r for r in results["summary"] if r["arm"] == "versatile")
    paired = [losses[5] - losses[1], losses[12] - losses[8]]
    assert versatile["difference"]["mean"] == pytest.approx(sum(paired) / 2)
    half = 12.7062047 * abs(paired[0] - paired[1]) / 2  # t for one degree of freedom times s/√2
    assert versatile["difference"]["high"] - sum(paired) / 2 == pytest.approx(half)
    assert "95 % over seeds" in (moved / "report.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scale", "huge"], "scale='huge' is unknown"),
        (["--tokens", "nowhere"], "leave one out"),
        (["--arms", "dense,moor"], "arm 'moor' is unknown"),
        (["--corpus", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    tmp_path: Path,
    corpus: Path,
    more: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = command(tmp_path / "out", corpus, *more)[1:]
    monkeypatch.setattr(sys, "argv", ["versatileffn", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("error: ")
    assert message in error


def test_a_folder_with_other_things_is_refused(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    done = forked(*command(tmp_path, corpus))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "choose another folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
