"""Processes beside each other: one of a run dies, or comes into a folder where one is at work."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from support.forked import VERB, forked, in_processes
from support.launch import SOURCE
from support.processes import join, leave
from versatileffn.errors import ResourceError
from versatileffn.training.checkpoint_store import CheckpointStore
from versatileffn.training.peers import losing_peers

DYING = """
import os, signal, sys
from versatileffn.cli.main import main
from versatileffn.training.trainer import ReuseTrainer
original = ReuseTrainer.training_step

def training_step(self, *args):
    if self.state.global_step == 4 and self.args.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args)

ReuseTrainer.training_step = training_step
sys.argv = ["versatileffn", "train", sys.argv[1]]
main()
"""
SECONDS = 200
"""By far more than it takes: what matters is that it isn't torch.distributed's half hour."""


def test_a_dead_process_ends_the_other_and_the_run_goes_on(make_config, tmp_path):
    run, file, script = (tmp_path / name for name in ("run", "run.yaml", "dying.py"))
    file.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    script.write_text(DYING)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), str(file)],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert result.returncode != 0
    (line,) = (each for each in result.stderr.splitlines() if each.startswith("error: "))
    assert line.startswith("error: another process of this run ended"), result.stderr
    assert line.endswith("the same command goes on from the newest checkpoint")
    assert "signal 9" in result.stderr.lower()  # torchrun's own word on the other one
    names = [path.name for path in (run / "checkpoints").iterdir()]
    assert sorted(names) == ["checkpoint-2", "checkpoint-4"]
    again = forked(VERB, "train", file, ranks=2)
    assert again.returncode == 0, again.stderr
    assert "resumed after step 4" in again.stdout
    assert json.loads((run / "run.json").read_text())["steps"] == 6


def test_errors_of_one_process_alone_are_its_own():
    with pytest.raises(RuntimeError, match="gloo"), losing_peers():
        raise RuntimeError("gloo: Connection closed by peer")


@pytest.mark.parametrize("words", ["Connection closed by peer", "NCCL error: remote process"])
def test_what_backends_say_is_told(monkeypatch, words):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    told = rf"another process .*{words}.* same command goes on"
    with pytest.raises(ResourceError, match=told), losing_peers():
        raise RuntimeError(f"{words}\nException raised from …")
    with pytest.raises(RuntimeError, match="a defect"), losing_peers():
        raise RuntimeError("a defect")


def lack_room_in_one(rank, folder):
    join(rank, folder)
    log = folder / "log.jsonl"
    CheckpointStore(folder, 1, None, log, 0).make_room()
    with pytest.raises(ResourceError, match=r"next checkpoint: .* needs 1,073,741,824\.0 GiB"):
        CheckpointStore(folder, 1, None, log, 2**60 * rank).make_room()
    leave()


def test_a_checkpoint_without_room_in_the_eyes_of_one_process_ends_all(tmp_path):
    in_processes(lack_room_in_one, tmp_path)


INTRUDED = """
import subprocess, sys
from versatileffn.cli.main import main
from versatileffn.training.trainer import ReuseTrainer
original, file = ReuseTrainer.training_step, sys.argv[1]

def training_step(self, *args):
    if self.state.global_step == 3:
        again = [sys.executable, "-m", "versatileffn.cli.main", "train", file]
        second = subprocess.run(again, capture_output=True, text=True)
        print(f"second: {second.returncode} {second.stderr.strip()}", flush=True)
        ReuseTrainer.training_step = original
    return original(self, *args)

ReuseTrainer.training_step = training_step
sys.argv = ["versatileffn", "train", file]
main()
"""


def test_a_second_process_in_the_same_folder_is_refused_and_the_first_goes_on(
    make_config, tmp_path
):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    first = forked("-c", INTRUDED, file)
    assert first.returncode == 0, first.stderr
    refused = f"error: another run is using run.output_dir={tmp_path / 'run'}: wait for it"
    assert f"second: 1 {refused}" in first.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 6
