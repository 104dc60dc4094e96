"""The run folder and its checkpoints: whole or not there, ours or refused."""

import json

import pytest

from versatileffn.errors import ConfigError
from versatileffn.training.checkpoints import commit, complete_checkpoints, leftovers, prune, remove
from versatileffn.training.run_folder import RunFolder, differences, keep_log_until

INPUTS = {"config": {"run": {"seed": 0}, "optim": {"tau": {"end": 0.1}}}, "world_size": 1}


def make_checkpoint(folder, step: int) -> None:
    partial = folder / ".partial" / f"checkpoint-{step}"
    partial.mkdir(parents=True)
    (partial / "weights").write_text(str(step))
    commit(partial, folder / f"checkpoint-{step}")
    (folder / ".partial").rmdir()


def test_checkpoints_are_sorted_by_step_and_pruned_oldest_first(tmp_path):
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    assert [p.name for p in complete_checkpoints(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]
    prune(tmp_path, keep=2)
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    assert (tmp_path / "checkpoint-100" / "weights").read_text() == "100"


def test_half_written_checkpoints_do_not_count_and_go_away(tmp_path):
    make_checkpoint(tmp_path, 3)
    (tmp_path / ".partial" / "checkpoint-6").mkdir(parents=True)
    (tmp_path / ".partial-checkpoint-1").mkdir()
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-3"]
    remove(leftovers(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def test_differences_name_dotted_keys():
    changed = {"config": {"run": {"seed": 1}, "optim": {"tau": {"end": 5.0}}}, "world_size": 2}
    assert differences(changed, INPUTS) == [
        "optim.tau.end is 5.0, was 0.1",
        "run.seed is 1, was 0",
        "world_size is 2, was 1",
    ]


def test_a_new_folder_then_the_same_run_then_another(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.check(INPUTS) is None
    assert not folder.path.exists()
    folder.path.mkdir()
    folder.prepare(INPUTS)
    make_checkpoint(folder.checkpoints, 4)
    assert folder.check(INPUTS).name == "checkpoint-4"
    with pytest.raises(ConfigError, match="world_size is 2, was 1"):
        folder.check(INPUTS | {"world_size": 2})
    folder.inputs.write_text("{torn")
    with pytest.raises(ConfigError, match="is damaged"):
        folder.check(INPUTS)


def test_a_folder_killed_at_birth_is_taken_up(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".inputs.json.partial").write_text("{")
    assert folder.check(INPUTS) is None
    folder.prepare(INPUTS)
    assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "inputs.json"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder(tmp_path / "run").check(INPUTS)


def test_log_lines_after_the_checkpoint_are_dropped(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "lo')
    keep_log_until(log, 2)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]
    keep_log_until(log, 0)
    assert log.read_text() == ""


def test_lines_that_are_not_the_logs_are_dropped(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'5\n{"step": 1}\n\xff\xfe\n{"step": "x"}\n[]\n{"step": 2}\n')
    keep_log_until(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("content", ["[]", "", "5", "[" * 100_000])
def test_damaged_inputs_are_one_short_line(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.inputs.write_text(content)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        folder.check(INPUTS)
    assert len(str(caught.value)) < 200 + len(str(tmp_path))


def test_a_users_partial_files_are_foreign_and_kept(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.prepare(INPUTS)
    (folder.path / ".thesis.partial").write_text("precious")
    (folder.path / ".photos.partial").mkdir()
    folder.prepare(INPUTS)
    assert (folder.path / ".thesis.partial").read_text() == "precious"
    assert (folder.path / ".photos.partial").is_dir()
    folder.inputs.unlink()
    folder.checkpoints.rmdir()
    with pytest.raises(ConfigError, match="holds no training run"):
        folder.check(INPUTS)


def test_a_held_folder_refuses_a_second_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        with pytest.raises(ConfigError, match="another run is using"), folder.held():
            pass
        assert folder.check(INPUTS) is None  # the lock itself isn't foreign
    with folder.held():
        pass
