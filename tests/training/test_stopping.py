"""Signals, and a deadline: the step is finished and saved, one line says how to go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from support.forked import VERB, Ended, forked
from support.launch import SOURCE
from support.processes import hear_signals
from versatileffn.training.config import TrainConfig
from versatileffn.training.run import train

# `versatileffn train ...`, whose process (group) gets signals when the n-th micro-batch begins.
SIGNALLED = """
import os, sys
from versatileffn.cli.main import main
from versatileffn.training.trainer import ReuseTrainer

number, whom, at, times, rank = (int(word) for word in sys.argv[1:6])
original, entered = ReuseTrainer.training_step, 0

def step(self, *args, **kwargs):
    global entered
    entered += 1
    if entered == at and int(os.environ.get("RANK", "0")) == rank:
        for _ in range(times):
            os.killpg(os.getpgid(0), number) if whom else os.kill(os.getpid(), number)
    return original(self, *args, **kwargs)

ReuseTrainer.training_step = step
sys.argv = ["versatileffn", *sys.argv[6:]]
main()
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def settings(make_config):
    """A run in which step 3, where signals arrive, lies between two log lines."""

    def make(output: Path, **run) -> tuple[TrainConfig, Path]:
        changes = {f"run__{key}": value for key, value in run.items()}
        config = make_config(
            model__ffn={"variant": "versatile", "num_experts": 4},
            run__output_dir=str(output),
            **{"run__per_device_train_batch_size": 8} | changes,
        )
        file = output.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return config, file

    return make


def signalled(file: Path, number: int, group: bool = False, times: int = 1, at: int = 3) -> Ended:
    words = [str(int(word)) for word in (number, group, at, times, 0)]
    return forked("-c", SIGNALLED, *words, "train", file)


def assert_equal_runs(one: Path, other: Path) -> None:
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logs = [
        [
            {key: value for key, value in json.loads(line).items() if "per_second" not in key
             and key not in ("eval_runtime", "eval_model_preparation_time")}
            for line in (run / "log.jsonl").read_text().splitlines()
        ]
        for run in (one, other)
    ]  # fmt: skip
    assert logs[0] == logs[1]


@pytest.mark.parametrize(("number", "code", "run"), [
    (signal.SIGINT, 130, {}),
    (signal.SIGTERM, 143, {"dataloader_num_workers": 1}),  # sent to the process that reads, too
    (signal.SIGHUP, 129, {"tokens_per_batch": 512, "save_steps": 4}),  # two micro-batches a step
    (signal.SIGUSR1, 138, {}),  # as Slurm's --signal=USR1@300
])  # fmt: skip
def test_the_step_is_saved_and_going_on_equals_never_having_stopped(
    settings, tmp_path, number, code, run
):
    config, file = settings(tmp_path / "run", **run)
    micro_batches = config.run.tokens_per_batch // 256
    result = signalled(file, number, group=True, at=2 * micro_batches + 1)
    assert result.returncode == code, result.stderr
    assert result.stderr.splitlines() == [
        "stopping after this step (Ctrl-C: at once)",
        "stopped: run the same command again to continue",
    ]
    assert "step 3 is saved" in result.stdout
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3").is_dir()
    assert not (tmp_path / "run" / "model").exists()
    train(config)
    whole, _ = settings(tmp_path / "whole", **run)
    assert_equal_runs(tmp_path / "run", train(whole))


def test_the_deadline_of_a_job_is_met_with_a_checkpoint(settings, tmp_path):
    """As short as can be, again and again: each job makes a step, and all of them the whole run."""
    config, file = settings(tmp_path / "run", max_steps=3, logging_steps=1, save_steps=3)
    for step in (1, 2):
        job = forked(VERB, "train", file, "--set", "run.deadline=1e-3")
        assert job.returncode == 138, job.stderr
        assert job.stderr.splitlines() == [
            "run.deadline is over: stopping after this step (Ctrl-C: at once)",
            "stopped: run the same command again to continue",
        ]
        assert f"step {step} is saved" in job.stdout
    train(config)  # without it: it is no part of what a run depends on
    whole, _ = settings(tmp_path / "whole", max_steps=3, logging_steps=1, save_steps=3)
    assert_equal_runs(tmp_path / "run", train(whole))


def test_a_deadline_that_is_far_changes_nothing(settings, tmp_path):
    config, _ = settings(tmp_path / "run", deadline=3600)
    assert (train(config) / "run.json").is_file()


def test_a_second_ctrl_c_ends_at_once(settings, tmp_path):
    _, file = settings(tmp_path / "run")
    result = signalled(file, signal.SIGINT, times=2)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert "is saved" not in result.stdout
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["checkpoint-2"]


def test_a_signal_in_the_last_step_lets_the_run_finish(settings, tmp_path):
    _, file = settings(tmp_path / "run")
    result = signalled(file, signal.SIGTERM, at=6)
    assert result.returncode == 0
    assert (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("form", [["-m", "versatileffn.cli.main"], ["versatileffn"]])
def test_while_importing_a_signal_ends_in_one_line(tmp_path, form, number):
    script = tmp_path / "versatileffn"  # as an installation writes it
    script.write_text("from versatileffn.cli.main import main\nmain()\n")
    program = form if form[0] == "-m" else [str(script)]
    # The signal comes from an import that ours begins with.
    (tmp_path / "torch.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{SOURCE}"}
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, *program, "train", "x.yaml"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
        preexec_fn=hear_signals,
    )  # fmt: skip
    assert result.returncode == 128 + number
    assert result.stderr == "stopped\n"
    assert time.monotonic() - began < 60  # it didn't sleep on


def test_a_program_that_imports_us_keeps_its_own_signals():
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT); import versatileffn;"
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True, timeout=120)


def test_what_is_ignored_stays_ignored(settings, tmp_path):
    """As under nohup."""
    _, file = settings(tmp_path / "run")
    words = [str(int(word)) for word in (signal.SIGHUP, False, 3, 1, 0)]
    result = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", SIGNALLED, *words,
         "train", str(file)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_signal_to_one_process_of_two_stops_both(settings, tmp_path):
    _, file = settings(tmp_path / "run", per_device_train_batch_size=2)
    words = [str(int(word)) for word in (signal.SIGTERM, False, 5, 1, 1)]  # to rank 1, in step 3
    result = forked("-c", SIGNALLED, *words, "train", file, ranks=2)
    assert result.codes == [143, 143], result.stderr
    assert "step 3 is saved" in result.stdout
    assert result.stderr.count("stopped: run the same command again to continue") == 1
    for output in (tmp_path / "run", tmp_path / "whole"):
        again = forked(VERB, "train", file, "--set", f"run.output_dir={output}", ranks=2)
        assert again.returncode == 0, again.stderr
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")
