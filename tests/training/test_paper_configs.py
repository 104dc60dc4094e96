"""The commands printed in configs/paper/ train on as many tokens as the paper did."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from versatileffn.cli import tokenize as tokenize_module
from versatileffn.cli.main import app
from versatileffn.data import tokenize as tokenize_data
from versatileffn.data.order import order_name
from versatileffn.training.batches import WindowBatches, plan_batches
from versatileffn.training.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"
PAPER = {"354m": 40e9, "720m": 70e9, "1.21b": 100e9}
SAMPLES = {"sample-10BT": 10e9, "sample-100BT": 100e9, "sample-350BT": 350e9}
"""Tokens, as the data set's page gives them."""


def commands(name: str) -> list[list[str]]:
    """The commands in a file's comment, as a shell divides them."""
    lines = [
        line[1:] for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line[:1] == "#"
    ]
    indented = "\n".join(line.strip() if line.startswith("   ") else "" for line in lines)
    joined = indented.replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line]


def config_of(command: list[str]):
    assert command[:2] == ["versatileffn", "train"]
    return load_config(CONFIGS.parents[1] / command[2], [
        word for before, word in pairwise(command) if before == "--set"
    ])  # fmt: skip


@pytest.fixture
def tokenized(monkeypatch):
    """What the tokenize command in the comment asks for, by running it."""

    def run(command: list[str]) -> dict:
        asked = {}
        monkeypatch.setattr(
            tokenize_data,
            "tokenize_corpus",
            lambda source, out, **options: asked.update(options, source=source, out=str(out)),
        )
        monkeypatch.setattr(tokenize_module, "_print_summary", lambda *_: None)
        result = CliRunner().invoke(app, command[1:])
        assert result.exit_code == 0, result.output
        return asked

    return run


@pytest.mark.parametrize("name", PAPER)
def test_the_printed_commands_train_on_the_papers_tokens(name, tokenized):
    tokenize, continued = commands(name)
    asked = tokenized(tokenize)
    assert asked["source"] == "HuggingFaceFW/fineweb-edu"
    available = SAMPLES[asked["hub_config"]]
    assert asked["limit_documents"] is None
    assert asked["val_documents"] * 1_000 < available / 1000  # few are held out
    base = load_config(CONFIGS / f"{name}.yaml")
    again = config_of(continued)
    for config in (base, again):
        assert config.data.tokens == asked["out"]
        plan = plan_batches(config, int(available) // config.data.seq_len, 1)
        trained = plan.max_steps * config.run.tokens_per_batch
        assert trained == pytest.approx(PAPER[name], rel=1e-4)
        assert plan.epochs_at(plan.max_steps) < 1.0001  # one pass, or part of it
        assert order_name(plan.num_windows) == "computed-1"  # it takes no memory


@pytest.mark.parametrize("name", PAPER)
def test_continuing_reads_the_same_tokens_in_the_same_order(name):
    base = load_config(CONFIGS / f"{name}.yaml")
    again = config_of(commands(name)[1])
    windows = 10_000
    plans = [plan_batches(config, windows, 1) for config in (base, again)]
    assert plans[0] == plans[1]
    orders = [WindowBatches(plan).step_windows(3) for plan in plans]
    assert orders[0] == orders[1]
    assert again.model.init_from == f"{base.run.output_dir}/model"
    assert again.run.output_dir != base.run.output_dir
    assert again.model.ffn.variant == "versatile"
    assert again.run.schedule_steps is None


SCALE = (CONFIGS.parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_pages_commands_are_those_of_the_comment():
    """Of data, base and reuse; the page adds a launcher and the control."""
    launched = re.findall(r"-m (versatileffn train .*)$", SCALE, re.MULTILINE)
    written = [
        shlex.split(line) for line in re.findall(r"^(versatileffn .*)$", SCALE, re.MULTILINE)
    ]
    given = commands("354m")
    assert given[0] in written
    assert shlex.split(launched[1]) == given[1]
    for line in launched:
        assert config_of(shlex.split(line)).run.max_steps == 25431
