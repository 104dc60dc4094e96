"""The run folder and its checkpoints: whole or not there, ours or refused."""

import json

import pytest

from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.training.checkpoints import (
    Binding,
    commit,
    complete_checkpoints,
    leftovers,
    newest_whole,
    prune,
)
from versatileffn.training.inputs import FORMAT, differences, inputs_sha256
from versatileffn.training.log_file import restore_log
from versatileffn.training.run_folder import RunFolder
from versatileffn.workspace.durable import remove

INPUTS = {
    "format": FORMAT,
    "imports": {},
    "config": {"run": {"seed": 0}, "optim": {"tau": {"end": 0.1}}},
    "tokens_meta_sha256": "0" * 64,
    "window_order": "table-1",
    "world_size": 1,
    "schedule_steps": 9,
    "steps": 9,
}
FILES = (
    "config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json",
    "rng_state.pth", "loss_window.json", "log.jsonl",
)  # fmt: skip


def make_checkpoint(folder, step: int, binding: Binding | None = None) -> None:
    partial = folder / ".partial" / f"checkpoint-{step}"
    partial.mkdir(parents=True)
    for name in FILES:
        (partial / name).write_text(f'{{"step": {step}}}\n')
    commit(partial, folder / f"checkpoint-{step}", binding or Binding("id", "digest"))
    (folder / ".partial").rmdir()


def names(folder) -> list[str]:
    return [path.name for path in complete_checkpoints(folder)]


def test_checkpoints_are_sorted_by_step_and_pruned_oldest_first(tmp_path):
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    assert json.loads((tmp_path / "checkpoint-100" / "optimizer.pt").read_text()) == {"step": 100}


def test_half_written_checkpoints_do_not_count_and_go_away(tmp_path):
    make_checkpoint(tmp_path, 3)
    (tmp_path / ".partial" / "checkpoint-6").mkdir(parents=True)
    (tmp_path / ".partial-checkpoint-1").mkdir()
    assert names(tmp_path) == ["checkpoint-3"]
    remove(leftovers(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def _edit(**changes):
    def damage(checkpoint):
        path = checkpoint / "contents.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda c: (c / "optimizer.pt").write_text("torn"), "optimizer.pt isn't what was written"),
    (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
    (lambda c: (c / "contents.json").unlink(), "contents.json is missing"),
    (_edit(files={}), "contents.json is missing or isn't"),
    (_edit(files={"config.json": "0" * 64}), "doesn't list scheduler.pt"),
    (_edit(step=4), "it is of step 4"),
    (_edit(run_id="other"), "another run's"),
    (_edit(inputs_sha256="other"), "another run's"),
])  # fmt: skip
def test_what_is_damaged_or_not_ours_gives_way_to_the_one_before(tmp_path, damage, reason):
    binding = Binding("id", "digest")
    for step in (3, 6):
        make_checkpoint(tmp_path, step)
    assert newest_whole(tmp_path, binding) == (tmp_path / "checkpoint-6", {})
    damage(tmp_path / "checkpoint-6")
    found, faults = newest_whole(tmp_path, binding)
    assert found == tmp_path / "checkpoint-3"
    assert reason in faults[tmp_path / "checkpoint-6"]


def test_differences_name_dotted_keys():
    changed = {
        **INPUTS,
        "config": {"run": {"seed": 1}, "optim": {"tau": {"end": 5.0}}},
        "world_size": 2,
    }
    assert differences(changed, INPUTS) == [
        "optim.tau.end is 5.0, was 0.1",
        "run.seed is 1, was 0",
        "world_size is 2, was 1",
    ]


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run with a checkpoint of step 4."""
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        binding = folder.prepare(INPUTS)
        make_checkpoint(folder.checkpoints, 4, binding)
        folder.log.write_text('{"step": 4}\n')
    return folder


def test_a_new_folder_then_the_same_run_then_another(folder):
    fresh = RunFolder(folder.path.with_name("new"))
    assert fresh.check(INPUTS) is None
    assert not fresh.path.exists()
    assert folder.check(INPUTS).name == "checkpoint-4"
    with pytest.raises(ConfigError, match=r"imports\.a is 'b', was None"):
        folder.check(INPUTS | {"imports": {"a": "b"}})


def test_other_processes_may_go_on_and_are_noted(folder):
    said = []
    for processes in (1, 2, 4):
        folder.prepare(INPUTS | {"world_size": processes}, said.append)
    assert [line.partition(":")[0] for line in said] == [
        "the run goes on with 2 processes, before it had 1",
        "the run goes on with 4 processes, before it had 2",
    ]
    record = json.loads(folder.inputs.read_text())
    assert (record["world_size"], record["processes_before"]) == (4, [1, 2])


def test_a_run_of_an_earlier_version_is_refused_with_what_to_do(folder):
    """Its checkpoints call tensors otherwise, and order the optimizer's state otherwise."""
    inputs = json.loads(folder.inputs.read_text())
    del inputs["format"], inputs["imports"]
    folder.inputs.write_text(json.dumps(inputs))
    with pytest.raises(ConfigError, match=r"of another version .* finish it with that version, or"):
        folder.check(INPUTS)


@pytest.mark.parametrize("content", ["{torn", "[]", "", "5", "[" * 100_000, "1" * 5000, None])
def test_lost_bookkeeping_is_written_again_from_the_checkpoints(folder, content):
    before = json.loads(folder.inputs.read_text())
    folder.inputs.unlink() if content is None else folder.inputs.write_text(content)
    said = []
    folder.prepare(INPUTS, said.append)
    assert json.loads(folder.inputs.read_text()) == before
    assert len(said) == 1
    assert "inputs.json was damaged: written again" in said[0]
    folder.prepare(INPUTS, said.append)
    assert len(said) == 1


@pytest.mark.parametrize("content", ["{torn", None])
def test_lost_bookkeeping_of_other_settings_is_refused(folder, content):
    folder.inputs.unlink() if content is None else folder.inputs.write_text(content)
    with pytest.raises(
        ConfigError, match=r"is damaged, and no checkpoint|no training run"
    ) as caught:
        folder.check(INPUTS | {"imports": {"a": "b"}})
    assert "\n" not in str(caught.value)
    assert names(folder.checkpoints) == ["checkpoint-4"]


def test_what_can_not_serve_is_set_aside_and_said(folder):
    binding = folder.prepare(INPUTS)
    for step in (6, 8):
        make_checkpoint(folder.checkpoints, step, binding)
        (folder.checkpoints / f"checkpoint-{step}" / "optimizer.pt").write_text("torn")
    (folder.checkpoints / "rejected-checkpoint-8").mkdir()
    said = []
    folder.prepare(INPUTS, said.append)
    assert names(folder.checkpoints) == ["checkpoint-4"]
    assert len(said) == 2
    assert "checkpoint-8 can't be resumed from (optimizer.pt isn't what was written)" in said[0]
    assert (folder.checkpoints / "rejected-checkpoint-8-2" / "optimizer.pt").is_file()
    assert (folder.checkpoints / "rejected-checkpoint-6").is_dir()


def test_without_any_whole_checkpoint_nothing_is_begun_anew(folder):
    (folder.checkpoints / "checkpoint-4" / "optimizer.pt").write_text("torn")
    with pytest.raises(CheckpointError, match=r"nor any before it: delete .*checkpoints"):
        folder.prepare(INPUTS)
    assert names(folder.checkpoints) == ["checkpoint-4"]


def test_a_folder_killed_at_birth_is_taken_up(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".inputs.json.partial").write_text("{")
    assert folder.check(INPUTS) is None
    folder.prepare(INPUTS)
    assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "inputs.json"]


def test_a_run_of_an_earlier_version_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.inputs.write_text(json.dumps({"config": INPUTS["config"], "world_size": 1}))
    with pytest.raises(ConfigError, match="earlier version"):
        folder.check(INPUTS)


def test_a_file_or_a_circle_of_links_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("run", "loop"):
        with pytest.raises(ConfigError, match="is a file, or a link to nothing"):
            RunFolder(tmp_path / name).check(INPUTS)


LINES = [f'{{"step": {step}}}\n' for step in (1, 2, 3, 4)]


@pytest.mark.parametrize(("content", "lost"), [
    ("".join(LINES[:2]), False),
    ("".join(LINES) + '{"step": 5, "lo', False),  # what came after the checkpoint goes away
    ("".join(LINES[1:]), True),
    (LINES[0], True),
    ("", True),
    (None, True),
])  # fmt: skip
def test_the_log_is_what_it_was_at_the_checkpoint(tmp_path, content, lost):
    log, checkpoint = tmp_path / "log.jsonl", tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "log.jsonl").write_text("".join(LINES[:2]))
    if content is not None:
        log.write_text(content)
    assert restore_log(log, checkpoint) is lost
    assert log.read_text() == "".join(LINES[:2])
    assert restore_log(log, None) is False
    assert log.read_text() == ""


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


def test_a_run_gets_longer_never_shorter_and_only_on_the_same_schedule(folder):
    with pytest.raises(ConfigError, match=r"of 9 steps, and 8 are asked for: .* longer"):
        folder.check(INPUTS | {"steps": 8, "schedule_steps": 8})
    with pytest.raises(ConfigError, match=r"add run\.schedule_steps=9; .*init_from"):
        folder.check(INPUTS | {"steps": 12, "schedule_steps": 12})
    longer = INPUTS | {"steps": 12}
    assert inputs_sha256(longer) == inputs_sha256(INPUTS)  # so checkpoints stay bound
    assert folder.check(longer).name == "checkpoint-4"
    said = []
    folder.prepare(longer, said.append)
    assert said == [
        "the run of 9 steps goes on to 12, from step 4: learning rate and τ stay where they end"
    ]
    record = json.loads(folder.inputs.read_text())
    assert (record["steps"], record["planned_before"]) == (12, [9])
    folder.prepare(longer, said.append)
    assert len(said) == 1
