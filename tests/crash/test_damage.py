"""Damaged files of something unfinished: a sample; `python tests/crash --damage` tries them all."""

import dataclasses

import pytest

from crash.damage import FLIPPED, REDONE, REFUSED, all_scenes, enumerate_damage
from crash.workshop import Workshop


@pytest.mark.parametrize(("name", "stride", "step"), [("train", 26, 250), ("tokenize", 9, 100)])
def test_damage_is_redone_or_refused(workshop: Workshop, name: str, stride: int, step: int) -> None:
    scene = next(each for each in all_scenes(workshop) if each.case.name == name)
    found = enumerate_damage(scene, workshop.driver, stride, step)
    assert found.failures == []
    assert sum(ends[REDONE] for ends in found.ends.values()) >= 2
    if name == "train":
        assert sum(ends[REFUSED] for ends in found.ends.values()) >= 2


def test_who_believes_what_is_there_is_flagged(workshop: Workshop) -> None:
    """The same, where no digest is ever compared."""
    scene = next(each for each in all_scenes(workshop) if each.case.name == "train")
    case = dataclasses.replace(scene.case, function="crash.controls:trusting")
    scene = dataclasses.replace(scene, case=case, only=r"(checkpoint-7/model|train/00000.ds$)")
    found = enumerate_damage(scene, workshop.driver)
    assert any(line.startswith(FLIPPED) and "redone, and" in line for line in found.failures)
