"""The training options on the depth task: what is declared, how an arm is fitted, what counts."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from reproduce.test_depth_results import row
from versatileffn.errors import ConfigError
from versatileffn.reproduce.depth import steps
from versatileffn.reproduce.depth.options import OPTION_ARMS, PLAIN
from versatileffn.reproduce.depth.protocol import SCALES, depth_protocol
from versatileffn.reproduce.depth.report import render
from versatileffn.reproduce.depth.results import summarize
from versatileffn.workspace.durable import write_json

SEEDS = range(6)


def capped(arm: str, exact: float, below: float, shift: float = 0.0) -> list[dict[str, Any]]:
    """Rows whose exact match is `exact`, and `below` under a cap, around which seeds lie."""
    made = []
    for seed in SEEDS:
        own = shift * [1, -2, 1.5, 0, -1, 0.5][seed]
        caps = {str(n): [below + own] * 5 for n in (1, 2, 3)} | {"4": [exact + own] * 5}
        made.append({**row(arm, seed, exact + own), "caps": caps})
    return made


def test_each_option_is_compared_with_the_form_without_it() -> None:
    rows = [
        *capped(PLAIN, 0.7, 0.5),
        *capped("better", 0.8, 0.5, 0.01),
        *capped("worse", 0.6, 0.4, 0.01),
        *capped("flat", 0.7, 0.65, 0.01),
    ]
    found = summarize(rows, PLAIN, PLAIN)
    assert found["verdict"] == {
        "helped": ["better"], "hurt": ["worse"], "graceful": ["flat"], "abrupt": ["worse"],
    }  # fmt: skip
    assert [(c["first"], c["second"]) for c in found["capped"]] == [
        ("better", PLAIN), ("worse", PLAIN), ("flat", PLAIN),
    ]  # fmt: skip
    smallest = min(found["capped"], key=lambda each: each["p"])
    assert smallest["p_holm"] == 3 * smallest["p"]


def test_the_report_names_what_was_shown(tmp_path: Path) -> None:
    rows = [*capped(PLAIN, 0.7, 0.5), *capped("flat", 0.7, 0.65, 0.01)]
    course = [{"step": 1, "exact": [0.0] * 5, "loops": [1.0] * 5}]
    protocol = depth_protocol("options")
    results = {
        "protocol": protocol.to_dict(), "seeds": list(SEEDS), "seconds": 1.0, "versions": {},
        "command": "reproduce", "created": "now", "device": {"name": "CPU"},
        "rows": [{**each, "course": course} for each in rows],
        "summary": summarize(rows, PLAIN, PLAIN),
    }  # fmt: skip
    write_json(tmp_path / "results.json", results)  # strict JSON
    report = render(results, tmp_path).with_suffix(".md").read_text()
    assert report.startswith("# What training options do\n")
    assert "- Right more often: none." in report
    assert "- More gracefully under a cap: `flat`." in report
    assert "the one of 2 with the best exact match" in report


def test_its_seeds_are_of_no_other_experiment_and_every_arm_says_what_it_does() -> None:
    mine = SCALES["options"]
    others = [each for each in SCALES.values() if each is not mine and each.task == mine.task]
    assert all(abs(mine.first_seed - each.first_seed) >= 10 for each in others)
    assert SCALES["options"].arms[0].name == PLAIN
    for arm in OPTION_ARMS[1:]:
        changed = arm.ffn != OPTION_ARMS[0].ffn
        assert changed != bool(arm.optim), f"{arm.name} is one option"


def test_where_depths_were_drawn_the_controllers_alone_are_fitted(tmp_path: Path) -> None:
    smoke = depth_protocol("smoke")
    [arm] = [arm for arm in OPTION_ARMS if arm.name == "sampled"]
    steps.ask(smoke, 0, None, tmp_path)
    steps.start(smoke, 0, arm.d_hidden, tmp_path)
    trained = steps.train_arm(
        smoke, arm, 0, 1e-2, tmp_path / "tokens", tmp_path / "model", tmp_path
    )
    assert [entry["step"] for entry in trained["course"]][-1] == 2  # a quarter of eight steps
    before, after = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("before", "run")
    )
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert changed == {f"model.layers.0.controller.{n}.weight" for n in ("router", "loop_head")}
    assert steps.measure(smoke, arm, tmp_path / "run" / "model", tmp_path)["exact"]


def test_some_of_the_options_can_be_asked_for() -> None:
    chosen = depth_protocol("options", [PLAIN, "rank"])
    assert chosen.arms == tuple(arm for arm in OPTION_ARMS if arm.name in (PLAIN, "rank"))
    with pytest.raises(ConfigError, match="arm 'rank' is unknown"):
        depth_protocol("tiny", ["rank"])
