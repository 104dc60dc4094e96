"""The stage engine: what is skipped, resumed, redone, set aside, refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from versatileffn import provenance
from versatileffn.cli.verify import verify_command
from versatileffn.errors import ConfigError
from versatileffn.reproduce import stages
from versatileffn.reproduce.stages import MARKER, Stage, StageRunner, canonical_hash, held


class Lab:
    """Stages that note what they did and can be told to fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[str] = []
        self.events: list[str] = []
        self.fail_in: str | None = None
        self.content = "weights"

    def stage(self, name: str, inputs: Any, needs: tuple[str, ...] = (), **kw: Any) -> Stage:
        def work(folder: Path) -> dict[str, Any]:
            self.calls.append(name)
            found = sorted(path.name for path in folder.iterdir())
            (folder / "half.txt").write_text("made on the way")
            (folder / "model").mkdir(exist_ok=True)
            (folder / "model/weights").write_text(self.content)
            if self.fail_in == name:
                raise RuntimeError("interrupted")
            return {"found": found, "inputs": inputs}

        return Stage(name, name, {"value": inputs}, work, needs, **kw)

    def run(self, *stages: Stage) -> dict[str, Any]:
        self.calls.clear()
        self.events.clear()
        with held(self.root):
            runner = StageRunner(self.root, lambda *event: self.events.append(event[3]))
            outcomes = runner.run(list(stages))
        return {name: outcome.summary for name, outcome in outcomes.items()}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "out")


def test_a_rerun_skips_everything_and_returns_the_same(lab: Lab) -> None:
    stages = [lab.stage("a", 1), lab.stage("b/c", 2, ("a",))]
    first = lab.run(*stages)
    assert lab.calls == ["a", "b/c"]
    assert lab.run(*stages) == first
    assert lab.calls == []


def test_changed_inputs_redo_the_stage_and_all_that_need_it(lab: Lab) -> None:
    lab.run(lab.stage("a", 1), lab.stage("b", 2, ("a",)), lab.stage("c", 3))
    lab.run(lab.stage("a", 9), lab.stage("b", 2, ("a",)), lab.stage("c", 3))
    assert lab.calls == ["a", "b"]
    kept = sorted(path.name for path in (lab.root / "superseded").iterdir())
    assert len(kept) == 2
    assert kept[0].startswith("a-")
    old = json.loads((lab.root / "superseded" / kept[0] / "stage.json").read_text())
    assert old["summary"]["inputs"] == 1


def test_changing_back_and_forth_loses_nothing(lab: Lab) -> None:
    for value in (1, 2, 1, 2):
        lab.run(lab.stage("a", value))
        assert lab.calls == ["a"]
    assert len(list((lab.root / "superseded").iterdir())) == 3


def test_an_interrupted_stage_finds_what_it_left(lab: Lab) -> None:
    stage = lab.stage("a", 1)
    lab.fail_in = "a"
    with pytest.raises(RuntimeError):
        lab.run(stage)
    assert not (lab.root / "a/stage.json").exists()
    lab.fail_in = None
    assert lab.run(stage)["a"]["found"] == ["half.txt", "inputs.json", "model"]
    assert lab.events == ["resume", "done"]


def test_an_attempt_with_other_inputs_is_not_resumed(lab: Lab) -> None:
    lab.fail_in = "a"
    with pytest.raises(RuntimeError):
        lab.run(lab.stage("a", 1))
    lab.fail_in = None
    assert lab.run(lab.stage("a", 2))["a"]["found"] == ["inputs.json"]
    assert len(list((lab.root / "superseded").iterdir())) == 1


def test_a_foreign_folder_is_refused_and_left_alone(lab: Lab) -> None:
    lab.root.mkdir()
    (lab.root / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="choose another folder"):
        lab.run(lab.stage("a", 1))
    assert [path.name for path in lab.root.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="is a file"), held(tmp_path / "out"):
        pass


def test_a_foreign_file_in_a_stage_folder_is_set_aside_not_lost(lab: Lab) -> None:
    lab.run()
    (lab.root / "a").mkdir()
    (lab.root / "a" / "notes.txt").write_text("mine")
    assert lab.run(lab.stage("a", 1))["a"]["found"] == ["inputs.json"]
    (moved,) = (lab.root / "superseded").iterdir()
    assert (moved / "notes.txt").read_text() == "mine"


def test_a_crash_before_the_record_of_inputs_sets_nothing_aside(lab: Lab) -> None:
    (lab.root / "a").mkdir(parents=True)
    (lab.root / MARKER).write_text("{}")
    (lab.root / "a" / ".inputs.json.partial").write_text('{"hash": ')
    lab.run(lab.stage("a", 1))
    assert not (lab.root / "superseded").exists()
    assert not (lab.root / "a" / ".inputs.json.partial").exists()


def test_two_runs_in_one_folder_are_refused(lab: Lab) -> None:
    with held(lab.root), pytest.raises(ConfigError, match="another run is using"):
        lab.run(lab.stage("a", 1))
    lab.run(lab.stage("a", 1))


@pytest.mark.parametrize("what", ["sources", "versions"])
def test_other_code_or_libraries_redo_the_stage(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    lab.run(lab.stage("a", 1))
    monkeypatch.setattr(stages, what, lambda *_: "changed")
    lab.run(lab.stage("a", 1))
    assert lab.calls == ["a"]


def test_stages_of_accepted_sources_are_taken_and_what_needs_them_is_ours(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(lab.stage("a", 1))
    earlier = stages.sources()
    monkeypatch.setattr(stages, "sources", lambda: "changed")
    with held(lab.root):
        runner = StageRunner(lab.root, accept=[earlier])
        outcomes = runner.run([lab.stage("a", 1), lab.stage("b", 2, ("a",))])
    assert lab.calls == ["a", "b"]
    assert [outcomes[name].source for name in "ab"] == [earlier, "changed"]


def test_only_what_is_finished_is_taken_where_nothing_may_run(lab: Lab) -> None:
    lab.run(lab.stage("a", 1), lab.stage("b", 2, ("a",)))
    later = [lab.stage("a", 1), lab.stage("b", 9, ("a",)), lab.stage("c", 3, ("b",))]
    with held(lab.root):
        outcomes = StageRunner(lab.root, only_finished=True).run(later)
    assert list(outcomes) == ["a"]
    assert lab.calls == ["a", "b"], "nothing ran"
    assert not (lab.root / "superseded").exists()


def test_the_digest_sees_every_source_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    digests = set()
    for content in ("a = 1", "a = 2"):
        (tmp_path / "room" / "module.py").write_text(content)
        digests.add(stages.sources.__wrapped__())
    assert len(digests) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_record_means_unfinished(lab: Lab, content: str) -> None:
    lab.run(lab.stage("a", 1))
    (lab.root / "a" / "stage.json").write_text(content)
    lab.run(lab.stage("a", 1))
    assert lab.calls == ["a"]


CHANGES = {
    "other content of the same size": lambda path: path.write_text("WEIGHTS"),
    "zeros": lambda path: path.write_bytes(b"\0" * 7),
    "emptied": lambda path: path.write_text(""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_product_that_is_not_what_was_written_is_made_again(lab: Lab, change: str) -> None:
    """And what was made from it is kept, for it comes out the same."""
    first = lab.stage("a", 1, produces=("model",))
    lab.run(first, lab.stage("b", 2, ("a",)))
    CHANGES[change](lab.root / "a/model/weights")
    lab.run(first, lab.stage("b", 2, ("a",)))
    assert lab.calls == ["a"]
    assert lab.events == ["damaged", "start", "done", "skip"]
    assert (lab.root / "a/model/weights").read_text() == "weights"
    (kept,) = (lab.root / "superseded").iterdir()
    assert (kept / "stage.json").exists()


@pytest.mark.parametrize("produces", [(), ("model",)])
def test_an_emptied_list_of_digests_proves_nothing(lab: Lab, produces: tuple[str, ...]) -> None:
    stage = lab.stage("a", 1, produces=produces)
    lab.run(stage)
    record = json.loads((lab.root / "a/stage.json").read_text())
    (lab.root / "a/stage.json").write_text(json.dumps({**record, "files": {}}))
    lab.run(stage)
    assert lab.events == ["damaged", "start", "done"]


def test_every_finished_stage_can_be_verified(lab: Lab) -> None:
    """Those, too, that produce nothing but their summary."""
    lab.run(lab.stage("a", 1, produces=("model",)), lab.stage("b", 2, ("a",)))
    verify_command([lab.root])


def test_what_comes_out_differently_redoes_all_that_need_it(lab: Lab) -> None:
    first = lab.stage("a", 1, produces=("model",))
    lab.run(first, lab.stage("b", 2, ("a",)))
    (lab.root / "a/model/weights").unlink()
    lab.content = "other weights"
    lab.run(first, lab.stage("b", 2, ("a",)))
    assert lab.calls == ["a", "b"]


def test_files_that_nobody_reads_may_be_deleted(lab: Lab) -> None:
    stage = lab.stage("a", 1, produces=("model",))
    lab.run(stage)
    (lab.root / "a/half.txt").unlink()
    lab.run(stage)
    assert lab.calls == []


def test_the_marker_is_no_link_to_follow(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    lab.root.mkdir()
    (lab.root / ".lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(ConfigError):
        lab.run(lab.stage("a", 1))
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert not (lab.root / MARKER).exists()


@pytest.mark.parametrize("root", ["file/below", "x" * 300])
def test_a_place_that_cannot_be_written(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't be written|is a file"), held(tmp_path / root):
        pass


def test_hash_ignores_key_order_and_sees_values() -> None:
    assert canonical_hash({"a": 1, "b": [2]}) == canonical_hash({"b": [2], "a": 1})
    assert canonical_hash({"a": 1}) != canonical_hash({"a": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_hash({"a": float("nan")})
