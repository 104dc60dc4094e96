"""What several processes may do at once, and what they may not."""

from pathlib import Path

import pytest

from versatileffn.errors import ConfigError
from versatileffn.reproduce import parallel
from versatileffn.reproduce.depth.plan import DepthPlan
from versatileffn.reproduce.depth.protocol import depth_protocol
from versatileffn.reproduce.parallel import chain, run_at_once, waves
from versatileffn.reproduce.plan import build_stages
from versatileffn.reproduce.protocol import protocol
from versatileffn.reproduce.run import reproduce
from versatileffn.reproduce.stages import Stage
from versatileffn.reproduce.tables import TABLES

ROOT = Path("out")
PLANS = {
    **{f"table {t}": build_stages(protocol("smoke", table=t), ROOT, 2) for t in TABLES},
    "depth": DepthPlan(depth_protocol("smoke"), ROOT, (0, 1)).stages(),
    "one rate": DepthPlan(depth_protocol("confirm"), ROOT, (7,)).stages(),
}


@pytest.mark.parametrize("plan", PLANS)
def test_no_stage_is_run_twice_or_before_what_it_needs(plan: str) -> None:
    finished: set[str] = set()
    for wave in waves(PLANS[plan]):
        begun: set[str] = set()
        for folder in wave:
            mine = [stage.name for stage in chain(PLANS[plan], folder)]
            new = [name for name in mine if name not in finished]
            assert new
            assert not begun & set(new)
            begun |= set(new)
        finished |= begun
    assert finished == {stage.name for stage in PLANS[plan]}


def test_a_chain_has_what_its_folder_needs_in_order() -> None:
    names = {
        "a/train": (), "b/train": ("a/train",), "b/measure": ("b/train",), "c/train": ("a/train",),
        "c/convert": ("b/train",),
    }  # fmt: skip
    stages = [Stage(name, name, {}, lambda _: {}, needs) for name, needs in names.items()]
    assert waves(stages) == [["a"], ["b"], ["c"]]
    assert [stage.name for stage in chain(stages, "c")] == [
        "a/train", "b/train", "c/train", "c/convert",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scale", "options", "said"),
    [
        ("smoke", {"workers": 0}, "workers=0 must be at least 1"),
        ("smoke", {"workers": 10**6}, "must be at most"),
        ("small", {"workers": 2}, "scale=small doesn't: leave them out"),
        ("smoke", {"workers": 2, "only_finished": True}, "smoke with only_finished doesn't"),
    ],
)
def test_where_workers_are_refused(tmp_path: Path, scale: str, options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reproduce(protocol(scale), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_sources_that_are_edited_meanwhile_make_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "sources", lambda: "of the run that has begun")
    with pytest.raises(ConfigError, match="sources have changed since"):
        run_at_once(PLANS["one rate"], tmp_path, 2)
    assert not list(tmp_path.iterdir())
