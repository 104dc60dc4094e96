"""A protocol as stages: order, dependencies, and which change redoes what."""

import dataclasses
from pathlib import Path

import pytest

from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import ConfigError, DataError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import KLoop
from versatileffn.reproduce.arms import THE_BASE, Arm
from versatileffn.reproduce.plan import build_stages, corpus_identity, token_folder_hash
from versatileffn.reproduce.protocol import SCALES, Protocol, protocol
from versatileffn.reproduce.results import CONTROL
from versatileffn.reproduce.stages import StageRunner, held
from versatileffn.reproduce.tables import TABLES


def hashes(chosen: Protocol, root: Path, **options: object) -> dict[str, str]:
    """Each stage's hash, the work itself left out."""
    stages = build_stages(chosen, root, **{"seeds": 1, **options})  # type: ignore[arg-type]
    idle = [dataclasses.replace(stage, work=lambda folder: {}) for stage in stages]
    with held(root):
        return {name: outcome.hash for name, outcome in StageRunner(root).run(idle).items()}


def changed(chosen: Protocol, tmp_path: Path, **fields: object) -> set[str]:
    """Which stages a change of the protocol redoes."""
    before = hashes(chosen, tmp_path / "a")
    after = hashes(dataclasses.replace(chosen, **fields), tmp_path / "a")  # type: ignore[arg-type]
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_the_fair_control_and_all_baselines(scale: str) -> None:
    names = [arm.name for arm in protocol(scale).arms]
    assert names[0] == CONTROL
    assert set(names) == {"dense", "2-loop", "4-loop", "moe", "versatile", "versatile-learned"}


@pytest.mark.parametrize("table", TABLES)
def test_every_arm_comes_after_what_it_continues_and_has_its_control(table: str) -> None:
    arms = protocol("smoke", table=table).arms
    there = {THE_BASE.name}
    for arm in arms:
        assert arm.name not in there
        assert arm.start is None or arm.start in there
        there.add(arm.name)
    assert {arm.control for arm in arms} <= there
    widths = {arm.name: arm.width for arm in (THE_BASE, *arms)}
    for arm in arms:  # a conversion keeps the sizes of what it converts
        assert arm.start is None or arm.width == widths[arm.start]


def test_an_arm_brings_what_it_needs() -> None:
    names = [arm.name for arm in protocol("smoke", ["dense-x4"], "reuse").arms]
    assert names == ["scratch-dense-x4", CONTROL, "dense-x4"]
    names = [arm.name for arm in protocol("smoke", ["scratch-moe"], "reuse").arms]
    assert names == ["scratch-moe"], "its control is the base"


def test_an_arm_from_scratch_is_known_by_all_that_makes_it(tmp_path: Path) -> None:
    """Its width, its FFN's knobs and what its training is told."""

    def digest(arm: Arm) -> str:
        chosen = dataclasses.replace(protocol("smoke"), arms=(arm,))
        return hashes(chosen, tmp_path)[f"seed-0/{arm.name}/train"]

    usual = Arm("a", "A", KLoop(), start=None)
    others = [
        dataclasses.replace(usual, width=2),
        dataclasses.replace(usual, budget=2),
        dataclasses.replace(usual, ffn=KLoop(num_loops=3)),
        dataclasses.replace(usual, optim={"weight_decay": 0.0}),
    ]
    assert len({digest(usual), *map(digest, others)}) == 5
    assert digest(usual) == digest(dataclasses.replace(usual, title="B"))


def test_further_arms_are_there_for_who_asks() -> None:
    usual = [arm.name for arm in protocol("tiny").arms]
    assert [arm.name for arm in protocol("tiny", ["all"]).arms] == [*usual, "mor"]
    (control, mor) = protocol("tiny", ["mor"]).arms
    assert control.name == CONTROL
    assert mor.ffn.starts_exactly
    with pytest.raises(ConfigError, match="arm 'moor' is unknown: choose from"):
        protocol("tiny", ["moor"])


def test_a_further_arm_redoes_no_other(tmp_path: Path) -> None:
    usual = hashes(protocol("smoke"), tmp_path / "a")
    more = hashes(protocol("smoke", ["all"]), tmp_path / "a")
    assert usual.items() <= more.items()
    assert {name.split("/")[1] for name in more.keys() - usual.keys()} == {"mor"}


def test_the_record_of_a_protocol_says_what_each_arm_is() -> None:
    for arm, record in zip(protocol("tiny").arms, protocol("tiny").to_dict()["arms"], strict=True):
        assert FFNConfig.from_dict(record["ffn"]) == arm.ffn
        assert (record["name"], record["title"]) == (arm.name, arm.title)


def test_unknown_scale_names_the_known_ones_but_not_the_hidden() -> None:
    with pytest.raises(
        ConfigError, match=r"choose one of \['tiny', 'tiny-epoch', '0.1m', '0.3m', .*'1.21b'\]"
    ):
        protocol("huge")


def test_every_stage_comes_after_what_it_needs(tmp_path: Path) -> None:
    seen: set[str] = set()
    for stage in build_stages(protocol("smoke"), tmp_path, seeds=2):
        assert set(stage.needs) <= seen
        seen.add(stage.name)
    assert len(seen) == 1 + 2 * (2 + 2 + 5 * 3)


def test_all_arms_start_from_the_same_base(tmp_path: Path) -> None:
    for stage in build_stages(protocol("smoke"), tmp_path, seeds=2):
        if stage.name.endswith("convert"):
            assert stage.name.split("/")[0] + "/base/train" in stage.needs


def test_measuring_differently_trains_nothing_again(tmp_path: Path) -> None:
    redone = changed(protocol("smoke"), tmp_path, usage_windows=4)
    assert {name.split("/")[-1] for name in redone} == {"measure"}


def test_a_longer_continuation_keeps_the_base_and_the_conversions(tmp_path: Path) -> None:
    redone = changed(protocol("smoke"), tmp_path, continued_tokens=9999)
    assert {name.split("/")[-1] for name in redone} == {"train", "measure"}
    assert not any("base" in name for name in redone)


def test_another_learning_rate_keeps_the_tokens_only(tmp_path: Path) -> None:
    redone = changed(protocol("smoke"), tmp_path, learning_rate=1.0)
    assert set(hashes(protocol("smoke"), tmp_path / "b")) - redone == {"tokenize"}


def test_more_seeds_keep_the_first(tmp_path: Path) -> None:
    one = hashes(protocol("smoke"), tmp_path / "a", seeds=1)
    two = hashes(protocol("smoke"), tmp_path / "a", seeds=2)
    assert one.items() <= two.items()
    assert two["seed-0/base/train"] != two["seed-1/base/train"]


def test_a_given_token_folder_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a token folder"):
        build_stages(protocol("smoke"), tmp_path, seeds=1, tokens=tmp_path)


def test_a_full_pass_is_the_papers_protocol() -> None:
    assert protocol("tiny-epoch").continued_share == 1
    assert 0 < protocol("tiny").continued_share < 1


def test_a_token_folder_is_known_by_its_shards(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text " * 50)
    tokens = tmp_path / "tokens"
    tokenize_corpus(tmp_path / "a.txt", tokens, vocab_size=300, val_fraction=0)
    before = token_folder_hash(tokens)
    (shard,) = (tokens / "train").glob("*.ds")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    assert token_folder_hash(tokens) != before


def test_a_corpus_is_known_by_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner/a.txt").write_text("some text")
    assert corpus_identity(str(first)) == corpus_identity(str(second))
    (second / "inner/a.txt").write_text("Some text")
    assert corpus_identity(str(first)) != corpus_identity(str(second))
    (second / "inner/a.txt").rename(second / "inner/b.txt")
    assert corpus_identity(str(first / "inner/a.txt")) != corpus_identity(str(first))
    assert corpus_identity("owner/dataset") == {"name": "owner/dataset"}
