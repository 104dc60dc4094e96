"""Slurm, by a stand-in that runs the submitted script's tasks as processes, and Ray itself.

`pytest tests/data/test_executors.py --executors` adds whole runs: minutes, for each task is a
process that imports everything.
"""

import hashlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from support import slurm
from versatileffn.data import corpus as corpus_module
from versatileffn.data import on_slurm, remote
from versatileffn.data.corpus import find_corpus
from versatileffn.data.executors import choose_executor
from versatileffn.data.pipeline import DocumentKeys, run_stage
from versatileffn.data.remote import RemoteTask, check_ended, failure
from versatileffn.data.shards import TaskRecords
from versatileffn.data.stage import Stage
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import ConfigError, DataError, ResourceError
from versatileffn.workspace.durable import write_json
from versatileffn.workspace.lock import locked

SOURCE = Path(__file__).parents[2] / "src"
COMMAND = "from versatileffn.cli.main import main; main()"


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of two files, one task each."""
    monkeypatch.setattr(corpus_module, "TASK_BYTES", 1)
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.2)
    (tmp_path / "corpus").mkdir()
    for part in range(2):
        lines = [f'{{"text": "{f"text {part} {n} " * (n + 1)}"}}' for n in range(20)]
        (tmp_path / "corpus" / f"{part}.jsonl").write_text("\n".join(lines))
    return tmp_path / "corpus"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's folder, its programs found first."""
    for name, value in slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    return tmp_path / "slurm"


def note(folder: Path, records: TaskRecords, rank: int) -> None:
    """A task: writes a file and its record."""
    (folder / f"{rank}.txt").write_text(f"{os.getcwd()} {os.environ['RAYON_NUM_THREADS']}")
    digest = hashlib.sha256((folder / f"{rank}.txt").read_bytes()).hexdigest()
    records.save(rank, {f"{rank}.txt": digest}, {})


def bad_at_one(folder: Path, records: TaskRecords, rank: int) -> None:
    if rank == 1:
        raise DataError("1.jsonl, line 2: not JSON")
    note(folder, records, rank)


def stage_of(task, folder: Path) -> Stage:  # type: ignore[no-untyped-def]
    records = TaskRecords(folder / "work", folder)
    return Stage(partial(task, folder, records), records)


def test_a_remote_task_is_our_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.chdir(tmp_path)
    stage = stage_of(note, tmp_path)
    task = RemoteTask(stage, [4, 7])
    monkeypatch.chdir("/")  # where a node may start us
    task(None, 1, 2)
    assert (tmp_path / "7.txt").read_text() == f"{tmp_path} 3"
    with pytest.raises(ResourceError, match=r"1 of 2 tasks didn't finish.*same command again"):
        check_ended(stage, [4, 7])
    task(None, 0, 2)
    check_ended(stage, [4, 7])
    before = (tmp_path / "7.txt").stat().st_mtime_ns
    task(None, 1, 2)  # a requeued job runs it once more
    assert (tmp_path / "7.txt").stat().st_mtime_ns == before


def test_what_a_remote_task_raises_arrives_and_ends_the_rest(tmp_path: Path) -> None:
    stage = stage_of(bad_at_one, tmp_path)
    task = RemoteTask(stage, [0, 1, 2])
    task(None, 0, 3)
    with pytest.raises(DataError):
        task(None, 1, 3)
    task(None, 2, 3)
    assert not stage.records.exists(2)
    with pytest.raises(DataError, match=r"^1\.jsonl, line 2: not JSON$"):
        check_ended(stage, [0, 1, 2])
    remote.forget_failures(stage)
    task(None, 2, 3)
    assert stage.records.exists(2)


def test_two_processes_are_never_at_one_task(tmp_path: Path) -> None:
    """One that an earlier call started may live on where nobody sees it."""
    stage = stage_of(note, tmp_path)
    (stage.folder / "00000").mkdir(parents=True)
    with (
        locked(stage.folder / "00000", "the task"),
        pytest.raises(ResourceError, match="another run is using task 0"),
    ):
        RemoteTask(stage, [0])(None, 0, 1)
    assert not stage.records.exists(0)
    assert isinstance(failure(stage), ResourceError)
    with (
        locked(stage.folder / "00000", "the task"),
        pytest.raises(ResourceError, match="another run is using task 0"),
    ):
        choose_executor("local", 1, {}, print).run(stage, [0], lambda: None)
    choose_executor("local", 1, {}, print).run(stage, [0], lambda: None)
    assert stage.records.exists(0)


def test_a_task_whose_files_changed_has_no_record(tmp_path: Path) -> None:
    """Otherwise an executor that waits for records would take it for done."""
    stage = stage_of(note, tmp_path)
    RemoteTask(stage, [0])(None, 0, 1)
    (tmp_path / "0.txt").write_text("flipped")
    assert stage.records.exists(0)
    assert not stage.records.finished(0)
    assert not stage.records.exists(0)


def test_impossible_choices(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(name: str, workers: int | None = None, **options: str) -> None:
        choose_executor(name, workers, options, print).close()

    with pytest.raises(ConfigError, match="executor='pbs' is unknown, choose among local, slurm"):
        choose("pbs")
    with pytest.raises(ConfigError, match="'partition' has no effect on local"):
        choose("local", partition="cpu")
    with pytest.raises(ConfigError, match="workers=0 must be at least 1"):
        choose("slurm", 0, partition="cpu")
    with pytest.raises(ConfigError, match="--executor-option partition=NAME"):
        choose("slurm", time="1:00:00")
    choose("slurm", 10_000, partition="cpu")  # not the cores of this machine
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_ARRAY_TASK_ID", "0")
        with pytest.raises(ConfigError, match="inside an array job"):
            choose("slurm", partition="cpu")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="needs sbatch, squeue, scancel"):
        choose("slurm", partition="cpu")
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="'memory' means nothing to ray, only memory-gb"):
        choose("ray", memory="4")
    with pytest.raises(ConfigError, match="memory-gb='much' must be a number"):
        choose("ray", **{"memory-gb": "much"})


def test_a_job_outlives_its_caller(small: Path, cluster: Path, tmp_path: Path) -> None:
    """Stopped while it waits, the call leaves a job that the next one waits for, too."""
    corpus, said = find_corpus(small), list[str]()
    options = {"partition": "cpu", "account": "me", "time": "1:00:00"}
    here = DocumentKeys(TaskRecords(tmp_path / "a", tmp_path / "keys-a"), 0)
    there = DocumentKeys(TaskRecords(tmp_path / "b", tmp_path / "keys-b"), 0)
    run_stage(corpus, here, choose_executor("local", 1, {}, print), lambda state: None)

    def run() -> None:
        run_stage(corpus, there, choose_executor("slurm", 2, options, said.append), print)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote.Watch, "poll", stopped)
        with pytest.raises(KeyboardInterrupt):
            run()
    run()
    assert there.keys(2).tolist() == here.keys(2).tolist()
    assert [path.name for path in cluster.iterdir() if path.name != "bin"] == ["1"]
    assert said[0].startswith("submitted Slurm job 1 of 2 tasks")
    assert said[1:] == ["waiting for Slurm job 1, which an earlier call submitted"]
    assert slurm.wait(cluster, 1) == [0, 0]
    script = (cluster / "1" / "script").read_text()
    for key, value in options.items():
        assert f"#SBATCH --{key}={value}\n" in script
    assert "--array=0-1%2\n" in script


def stopped(watch: object) -> None:
    raise KeyboardInterrupt


def test_a_refused_job_is_told(small: Path, cluster: Path, tmp_path: Path) -> None:
    (cluster / "bin" / "sbatch").write_text("#!/bin/sh\nexit 3\n")
    executor = choose_executor("slurm", None, {"partition": "cpu"}, print)
    step = DocumentKeys(TaskRecords(tmp_path / "a", tmp_path / "keys"), 0)
    with pytest.raises(ConfigError, match="sbatch refused the job with exit code 3"):
        run_stage(find_corpus(small), step, executor, print)


@pytest.mark.usefixtures("whole_runs")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_every_executor_makes_the_same_folder(
    executor: str, small: Path, cluster: Path, tmp_path: Path
) -> None:
    """Bad input is told as it is locally; then, mended, the folder is the same bit for bit."""
    pytest.importorskip("ray")
    options = {"partition": "cpu"} if executor == "slurm" else {"memory-gb": "0.5"}

    def tokenize(name: str, out: str) -> None:
        given = options if name == executor else {}
        tokenize_corpus(
            small, tmp_path / out, vocab_size=300, val_documents=5, executor=name,
            executor_options=given, workers=2, notice=print,
        )  # fmt: skip

    tokenize("local", "here")
    tokenize(executor, "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    (small / "1.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(DataError, match=r"1\.jsonl, line 2: not JSON"):
        tokenize(executor, "bad")
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "slurm", "here", "there"}


@pytest.mark.usefixtures("whole_runs")
@pytest.mark.timeout(900)
def test_a_killed_command_is_given_again(small: Path, cluster: Path, tmp_path: Path) -> None:
    """The verb itself, killed at once when its first job runs."""
    tokenize_corpus(small, tmp_path / "here", vocab_size=300, val_documents=5)
    command = [sys.executable, "-c", COMMAND, "tokenize", str(small), "--vocab-size", "300"]
    command += ["--val-documents", "5", "--out", str(tmp_path / "there"), "--executor", "slurm"]
    command += ["--executor-option", "partition=cpu"]
    command[2] = "from versatileffn.data import corpus; corpus.TASK_BYTES = 1; " + COMMAND
    with subprocess.Popen(command) as first:
        while not list(tmp_path.glob(".there*/read-tasks/job.json")):
            assert first.poll() is None
        first.kill()
    subprocess.run(command, check=True)
    # One job for each stage: the second command waited for the first one's, or took what it left.
    assert sorted(path.name for path in cluster.iterdir()) == ["1", "2", "bin"]
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_queue_that_never_answers_ends_the_wait(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer among the failures starts the count again."""
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(on_slurm, "TRIES", 3)
    stage = stage_of(note, tmp_path)
    stage.folder.mkdir()
    write_json(stage.folder / "job.json", {"job": "7"})
    (cluster / "bin" / "squeue").write_text(
        f'#!/bin/sh\necho >> "{cluster}/asked"\n'
        f'[ $(wc -l < "{cluster}/asked") = 2 ] && echo RUNNING && exit\n'
        "echo 'Unable to contact slurm controller' >&2; exit 1\n"
    )
    executor = choose_executor("slurm", None, {"partition": "cpu"}, print)
    told = r"3 times in a row \(Unable to contact .*Slurm job 7.* run the same command again"
    with pytest.raises(ResourceError, match=told):
        executor.run(stage, [0], lambda: None)
    assert (cluster / "asked").read_text() == 5 * "\n"


def test_a_job_that_slurm_forgot_is_over(cluster: Path, small: Path, tmp_path: Path) -> None:
    """Its number in a note doesn't keep the next call from submitting another."""
    stage = stage_of(note, tmp_path)
    stage.folder.mkdir()
    write_json(stage.folder / "job.json", {"job": "99"})
    executor = choose_executor("slurm", None, {"partition": "cpu"}, print)
    (cluster / "bin" / "sbatch").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ConfigError, match="sbatch refused"):
        executor.run(stage, [0], lambda: None)
