"""Where models come from: initialisation, paper sizes, checkpoints that don't fit."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from support.families import tiny_dense
from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
from versatileffn.models.weights import parameter_count
from versatileffn.training.architecture import Architecture, architecture_config
from versatileffn.training.config import ModelSection, load_config
from versatileffn.training.init import (
    build_model,
    model_config,
    new_model,
    set_execution,
    truncated_init,
)
from versatileffn.training.run import train

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"
TINY = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
DENSE_PARAMETERS = {"354m": 354_712_576, "720m": 720_813_000, "1.21b": 1_212_742_000}
MOE_PARAMETERS = {"354m": 543.6e6, "720m": 1145.7e6, "1.21b": 1968.0e6}


def count(name: str, ffn: FFNConfig | None) -> int:
    architecture = load_config(CONFIGS / f"{name}.yaml").model.architecture
    return parameter_count(architecture_config(architecture, ffn))


@pytest.mark.parametrize("name", DENSE_PARAMETERS)
def test_paper_sizes_build_with_the_papers_parameters(name):
    """Source: Table 2's exact parameters."""
    width = {"354m": 1024, "720m": 1536, "1.21b": 2048}[name]
    dense = count(name, None)
    assert dense == DENSE_PARAMETERS[name] or round(dense, -3) == DENSE_PARAMETERS[name]
    assert count(name, Dense()) == dense
    assert count(name, KLoop()) == dense
    assert count(name, Versatile()) == dense + 15 * width * (8 + 4)
    assert round(count(name, MoE()), -5) == MOE_PARAMETERS[name]


@pytest.mark.parametrize(("name", "rate", "batch"), [
    ("354m", 5e-4, 1.5e6), ("720m", 4e-4, 1e6), ("1.21b", 3e-4, 0.5e6),
])  # fmt: skip
def test_paper_hyper_parameters(name, rate, batch):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.optim.learning_rate == rate
    assert config.run.tokens_per_batch == pytest.approx(batch, rel=0.05)
    assert config.data.seq_len == 4096
    built = architecture_config(config.model.architecture, None)
    assert built.rope_parameters["rope_theta"] == 10000
    assert (built.num_hidden_layers, built.num_attention_heads) == (15, 16)
    assert built.rms_norm_eps == 1e-6
    assert (built.vocab_size, built.max_position_embeddings) == (50304, 4096)
    assert not built.tie_word_embeddings


def fresh(ffn: FFNConfig | None, seed: int = 0) -> torch.nn.Module:
    model = new_model(architecture_config(Architecture(**TINY), ffn, vocab_size=512))
    truncated_init(model, 0.02, seed)
    return model


def test_init_is_a_truncated_normal():
    """σ of N(0, 0.02²) cut at ±3σ is 0.9866 · 0.02."""
    weight = fresh(None).model.embed_tokens.weight.detach()
    assert weight.abs().max() <= 0.06
    assert weight.abs().max() > 0.055
    assert weight.mean().abs() < 4 * 0.02 / math.sqrt(weight.numel())
    assert weight.std() == pytest.approx(0.9866 * 0.02, rel=0.02)


def test_init_touches_every_matrix_and_leaves_norms_gains_and_loops_own_weights():
    ffn = Versatile(num_experts=4, reuse_gains="learned", loop_rank=2)
    model = new_model(architecture_config(Architecture(**TINY), ffn, vocab_size=512))
    before = {name: p.clone() for name, p in model.named_parameters()}
    truncated_init(model, 0.02, 0)
    for name, parameter in model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (parameter.ndim >= 2 and ".expand." not in name), name


def test_variants_share_their_common_weights():
    dense = dict(fresh(None).named_parameters())
    reuse = dict(fresh(Versatile()).named_parameters())
    assert dense.keys() < reuse.keys()
    assert all(torch.equal(dense[name], reuse[name]) for name in dense)
    other = dict(fresh(None, seed=1).named_parameters())
    assert not torch.equal(dense["lm_head.weight"], other["lm_head.weight"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dense")
    config = LlamaConfig(**TINY, vocab_size=512, max_position_embeddings=64)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return str(path)


def build(section: dict, vocab_size: int = 512, seq_len: int = 64):
    parsed = ModelSection.model_validate(section)
    return build_model(parsed, model_config(parsed, vocab_size, 0, seq_len), seed=0)


def test_a_dense_checkpoint_stays_dense_and_becomes_float32(checkpoint):
    model = build({"init_from": checkpoint})
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.float32


def test_a_dense_checkpoint_is_upcycled_where_the_ffn_says_so(checkpoint):
    ids = torch.arange(20)[None]
    dense = build({"init_from": checkpoint}).eval()
    reuse = build({"init_from": checkpoint, "ffn": {"reuse_gains": "learned"}}).eval()
    assert reuse.config.ffn().variant == "versatile"
    assert reuse.dtype == torch.float32
    torch.testing.assert_close(reuse(ids).logits, dense(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_reuse_checkpoint_continues_as_it_is_or_refuses(checkpoint, tmp_path):
    build({"init_from": checkpoint, "ffn": {"max_loops": 3}}).save_pretrained(tmp_path / "reuse")
    source = str(tmp_path / "reuse")
    assert build({"init_from": source}).config.ffn().max_loops == 3
    same = build({"init_from": source, "ffn": {"max_loops": 3, "router_aux_loss_coef": 0.5}})
    assert same.config.ffn().router_aux_loss_coef == 0.5
    with pytest.raises(ConfigError, match=r"model\.ffn\.max_loops=4, but the checkpoint.*3"):
        build({"init_from": source, "ffn": {"max_loops": 4}})
    with pytest.raises(ConfigError, match=r"model\.ffn\.variant='moe'"):
        build({"init_from": source, "ffn": {"variant": "moe"}})


@pytest.mark.parametrize("vocab_size", [600, 300])
def test_a_vocabulary_that_does_not_fit_names_both_sizes(checkpoint, vocab_size):
    with pytest.raises(ConfigError, match=rf"512 tokens, data\.tokens one of {vocab_size}"):
        build({"init_from": checkpoint}, vocab_size=vocab_size)


def test_a_padded_vocabulary_fits(checkpoint):
    assert build({"init_from": checkpoint}, vocab_size=500).config.vocab_size == 512


def test_a_vocabulary_from_scratch_defaults_to_the_datas_and_is_not_smaller():
    assert build({"architecture": TINY}, vocab_size=77).config.vocab_size == 77
    with pytest.raises(ConfigError, match="vocab_size=64 is smaller than the 77 tokens"):
        build({"architecture": TINY | {"vocab_size": 64}}, vocab_size=77)


def test_a_window_longer_than_the_positions_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="seq_len=65 exceeds max_position_embeddings=64"):
        build({"init_from": checkpoint}, seq_len=65)


@pytest.mark.parametrize("ffn", [None, {"variant": "k-loop"}], ids=["dense", "k-loop"])
def test_another_family_from_scratch(ffn):
    """Fields that are left out are the family's; those it doesn't have are refused."""
    architecture = TINY | {"family": "qwen3", "more": {"use_sliding_window": True}}
    model = build({"architecture": architecture, "ffn": ffn}, vocab_size=77)
    assert model.config.model_type == ("qwen3" if ffn is None else "versatile_qwen3")
    assert model.config.use_sliding_window
    assert model(torch.arange(20)[None]).logits.shape == (1, 20, 77)
    with pytest.raises(ConfigError, match="qwen3 has no field 'mlp_bias'"):
        build({"architecture": architecture | {"mlp_bias": True}})
    with pytest.raises(ConfigError, match="no field 'sliding_windows'; did you mean 'sliding_w"):
        build({"architecture": architecture | {"more": {"sliding_windows": 3}}})


def test_execution_is_the_runs_and_a_plain_dense_model_has_none(checkpoint):
    reuse = build({"init_from": checkpoint, "ffn": {}})
    set_execution(reuse, "masked")
    assert {layer.execution for layer in reuse.reuse_layers()} == {"masked"}
    dense = build({"init_from": checkpoint})
    set_execution(dense, "auto")
    with pytest.raises(ConfigError, match=r"run\.execution='masked' has no effect"):
        set_execution(dense, "masked")


def test_experts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="exceeds"):
        build({"architecture": TINY, "ffn": {"d_expert": 100}})


def refused(error: type[Exception], source: object, match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        build({"init_from": str(source)})
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_checkpoints_are_refused(checkpoint, tmp_path):
    refused(CheckpointError, tmp_path / "nowhere", "no such folder")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((Path(checkpoint) / "config.json").read_text())
    refused(CheckpointError, broken, "can't be read")
    (broken / "model.safetensors").write_bytes(b"torn")
    refused(CheckpointError, broken, "can't be read")


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_hidden_layers": 1}, "weights its config doesn't know"),
    ({"num_hidden_layers": 3}, "lacks"),
    ({"num_hidden_layers": -1}, "no layers"),
    ({"intermediate_size": 128}, "has the shape"),
    ({"model_type": "gpt2"}, "'gpt2' isn't supported"),
])  # fmt: skip
def test_a_checkpoint_whose_config_lies_is_refused(checkpoint, tmp_path, changes, message):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    refused(CheckpointError, copy, message)


def test_weights_that_are_not_numbers_are_refused(checkpoint, tmp_path):
    model = build({"init_from": checkpoint})
    with torch.no_grad():
        model.lm_head.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    refused(CheckpointError, tmp_path, "NaN")


def test_a_run_folder_is_pointed_to_its_model(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    refused(CheckpointError, tmp_path, f"give {tmp_path}/model")


def test_a_hub_id_with_an_owner_is_asked_for(monkeypatch):
    """With no network and no cache, the answer is the hub's, not that a folder is missing."""
    asked = []

    def offline(source, **_):
        asked.append(source)
        raise OSError("offline")

    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", offline)
    refused(CheckpointError, "owner/name", "offline")
    assert asked == ["owner/name"]


def test_an_architecture_that_memory_can_not_hold_is_one_line(monkeypatch):
    def too_large(config):
        raise RuntimeError("can't allocate memory: you tried to allocate 1 TB\nmore")

    monkeypatch.setattr("versatileffn.training.init.new_model", too_large)
    with pytest.raises(ConfigError, match="choose smaller sizes") as caught:
        build({"architecture": TINY})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_a_checkpoint_of_another_family_is_upcycled_and_trained(make_config, tmp_path, family):
    dense = tiny_dense(family, vocab_size=64)
    dense.save_pretrained(tmp_path / "dense")
    model = {"init_from": str(tmp_path / "dense"), "ffn": {"reuse_gains": "learned"}}
    changes = {f"model__{name}": value for name, value in model.items()}
    run = train(make_config(model__architecture=None, run__execution="masked", **changes))
    losses = [
        entry["eval_loss"]
        for entry in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        if "eval_loss" in entry
    ]
    assert losses[-1] < losses[0]
    trained = AutoModelForCausalLM.from_pretrained(run / "model")
    assert trained.config.model_type == f"versatile_{family}"
    assert trained.config.tau < 5
    assert json.loads((run / "run.json").read_text())["variant"] == "versatile"
