"""The paper's tables as data: every arm can be built, every number belongs to one."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from versatileffn.analysis.flops import model_cost
from versatileffn.analysis.presets import preset
from versatileffn.models.family import reuse_config
from versatileffn.reproduce.arms import THE_BASE
from versatileffn.reproduce.launch import cost, launch, overrides
from versatileffn.reproduce.paper import CITED, CITED_354M
from versatileffn.reproduce.plan import build_stages
from versatileffn.reproduce.protocol import LAUNCHED, SCALES, protocol
from versatileffn.reproduce.results import BASE, CONTROL
from versatileffn.reproduce.steps import Context, train_config
from versatileffn.reproduce.tables import TABLES
from versatileffn.training.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"


@pytest.mark.parametrize("table", TABLES)
def test_every_declared_arm_can_be_built_and_trained(table: str, tmp_path: Path) -> None:
    """Its FFN fits the smallest model, its training is a valid run, its stages have an order."""
    chosen = protocol("smoke", table=table)
    context = Context(chosen, tmp_path, 0)
    for arm in (THE_BASE, *chosen.arms):
        config = train_config(context, arm, tmp_path if arm.start else None, tmp_path)
        shape = LlamaConfig(**chosen.architecture_of(arm), vocab_size=chosen.vocab_size)
        assert model_cost(reuse_config(shape, arm.ffn)).parameters > 0
        if arm.start is None and arm is not THE_BASE and arm.ffn.variant != "dense":
            assert config.model.ffn == arm.ffn
        assert config.run.max_steps == chosen.tokens(arm) // chosen.batch_tokens
    seen: set[str] = set()
    for stage in build_stages(chosen, tmp_path, seeds=1):
        assert set(stage.needs) <= seen
        seen.add(stage.name)


@pytest.mark.parametrize("scale", SCALES)
def test_the_experts_of_every_table_fit_every_scale(scale: str) -> None:
    for table in TABLES:
        chosen = protocol(scale, table=table)
        for arm in chosen.arms:
            d_hidden = chosen.architecture_of(arm)["intermediate_size"]
            assert arm.ffn.unused_neurons(d_hidden) == 0, (table, arm.name)


@pytest.mark.parametrize("table", CITED)
def test_every_cited_number_has_its_arm(table: str) -> None:
    there = {BASE, *(arm.name for arm in TABLES[table].arms)}
    for by_arm in CITED[table].values():
        assert set(by_arm) <= there
        missing = there - set(by_arm) - {CONTROL, "versatile-learned"}  # not in the paper's tables
        assert missing <= ({BASE} if table in ("4", "figure-3") else set())


def test_the_papers_means_are_those_of_its_tasks() -> None:
    for by_arm in CITED["1"].values():
        for arm, cited in by_arm.items():
            assert sum(cited.tasks) / 8 == pytest.approx(cited.accuracy, abs=0.0051), arm


def test_one_model_has_one_number_in_all_tables() -> None:
    found: dict[str, set[float]] = {}
    for by_scale in CITED.values():
        for arm, cited in by_scale["354m"].items():
            found.setdefault(arm, set()).add(cited.loss)
    assert all(len(losses) == 1 for losses in found.values())
    printed = {row.loss for row in CITED_354M}
    assert {f"{CITED['1']['354m'][arm].loss:.3f}" for arm in ("moe", "2-loop")} <= printed


@pytest.mark.parametrize("scale", LAUNCHED)
def test_the_printed_overrides_are_the_arms_training(scale: str) -> None:
    for table in TABLES:
        chosen = protocol(scale, table=table)
        for arm in (THE_BASE, *chosen.arms):
            config = load_config(CONFIGS / f"{scale}.yaml", overrides(chosen, arm))
            assert config.run.max_steps == chosen.steps(chosen.tokens(arm)), arm.name
            assert config.run.tokens_per_batch == chosen.batch_tokens
            assert config.optim.learning_rate == chosen.learning_rate
            ours = train_config(
                Context(chosen, Path(), 0), arm, Path("start") if arm.start else None, Path()
            )
            assert config.optim == ours.optim
            if arm.start is None:
                shape = chosen.architecture_of(arm)
                assert config.model.architecture is not None
                assert config.model.architecture.intermediate_size == shape["intermediate_size"]
            else:
                assert config.model.architecture is None
                assert str(config.model.init_from).endswith("/model")
            assert (config.model.ffn or arm.ffn) == arm.ffn
            assert (config.model.ffn is None) == (arm.ffn.variant == "dense")


def test_the_cost_is_the_ffns_and_the_rest() -> None:
    """6 FLOPs per token and weight that multiplies; each further loop, the FFN's once more."""
    chosen = protocol("354m", table="1")
    arms = {arm.name: arm for arm in chosen.arms}
    shape = preset("354m")
    D, T, layers = shape.hidden_size, chosen.seq_len, shape.num_hidden_layers
    weights = layers * (4 * D * D + 3 * D * shape.intermediate_size) + D * shape.vocab_size
    dense = cost(chosen, arms[CONTROL])
    assert dense.flops == dense.tokens * (6 * weights + 3 * layers * 2 * T * D)
    ffn = 6 * layers * 3 * D * shape.intermediate_size * dense.tokens
    assert cost(chosen, arms["4-loop"]).flops - dense.flops == pytest.approx(3 * ffn)
    assert cost(chosen, arms["moe"]).flops - dense.flops == pytest.approx(ffn / 4, rel=0.01)
    # The paper's form runs all four loops forward, and backward those that its tokens chose.
    extra = cost(chosen, arms["versatile"]).flops - dense.flops
    assert extra == pytest.approx(ffn * (4 + 2 * 3.1) / 3 - ffn, rel=0.01)


def test_what_is_launched_is_said_in_full() -> None:
    lines = "\n".join(launch(protocol("720m", ["width"], "3")))
    assert "GPU-hours" in lines
    assert "70B tokens" in lines
    assert '"fusion": "width"' in lines
    assert lines.count("train configs/paper/720m.yaml") == 3
