"""A loop profile against the plans that it sums up."""

from collections import Counter
from typing import Any

import pytest
import torch

from support.models import make_ids, make_model
from versatileffn.analysis.loop_profile import Group, loop_profile, loops_outcome
from versatileffn.errors import ConfigError
from versatileffn.evaluation.loops import layer_use
from versatileffn.evaluation.observe import observe


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(variant="versatile")


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    return [make_ids(3, 21), make_ids(1, 6, seed=2)]


def expected(loops: list[int]) -> tuple[int, float]:
    return len(loops), sum(loops) / len(loops)


def test_layers_are_those_of_layer_use(model, batches) -> None:
    profile = loop_profile(model, batches)
    uses = layer_use(model, batches)
    assert [group.label for group in profile.layers] == ["1", "2"]
    for group, lam, use in zip(profile.layers, profile.mean_lam, uses, strict=True):
        assert (group.mean_loops, group.loop_share, lam) == (
            use.mean_loops,
            use.loop_share,
            use.mean_lam,
        )
    assert profile.tokens == 69


def test_positions_and_frequencies_are_counted_token_by_token(model, batches) -> None:
    profile = loop_profile(model, batches)
    times = Counter(token for ids in batches for token in ids.flatten().tolist())
    by_place: dict[int, list[int]] = {}
    by_count: dict[int, list[int]] = {}
    for seen in observe(model, batches):
        for plan in seen.decisions:
            for ids, loops in zip(seen.ids_BT.tolist(), plan.loop_count.tolist(), strict=True):
                for place, (token, loop) in enumerate(zip(ids, loops, strict=True), start=1):
                    by_place.setdefault(place.bit_length(), []).append(loop)
                    by_count.setdefault(times[token].bit_length(), []).append(loop)
    for groups, found in ((profile.positions, by_place), (profile.frequencies, by_count)):
        assert len(groups) == len(found) > 1
        for group, (_, loops) in zip(groups, sorted(found.items()), strict=True):
            assert (group.decisions, pytest.approx(group.mean_loops)) == expected(loops)
            for n, share in enumerate(group.loop_share, start=1):
                assert share == pytest.approx(loops.count(n) / len(loops))
    assert [group.label for group in profile.positions] == ["1", "2–3", "4–7", "8–15", "16–21"]


def test_the_table_holds_each_group(model, batches) -> None:
    profile = loop_profile(model, batches)
    lines = loops_outcome(profile).files["loops.csv"].decode().splitlines()
    assert lines[0] == "kind,group,decisions,mean_loops,share_1,share_2,share_3,share_4"
    kinds = (profile.layers, profile.positions, profile.frequencies)
    groups: list[Group] = [group for kind in kinds for group in kind]
    assert len(lines) == 1 + len(groups)
    for line, group in zip(lines[1:], groups, strict=True):
        cells = line.split(",")
        assert cells[1] == group.label
        assert [float(cell) for cell in cells[3:]] == [group.mean_loops, *group.loop_share]


@pytest.mark.parametrize(
    ("variant", "reason"),
    [("dense", "it is dense"), ("k-loop", "takes 2 loops by design"), ("moe", "experts are real")],
)
def test_a_model_that_decides_no_loops_is_refused(variant, reason, batches) -> None:
    with pytest.raises(ConfigError, match=reason):
        loop_profile(make_model(variant=variant), batches)
