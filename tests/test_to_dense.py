"""Back to a dense checkpoint, exactly, wherever the reuse adds nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import versatileffn as vf
from support.forked import VERB, forked
from support.models import SHAPE, make_ids, make_model
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.models.family import HEADS, make_classes
from versatileffn.workspace.manifest import damage, files_of, read_record

GEMMA = SHAPE | {"num_key_value_heads": 4, "head_dim": 8}


def run(*words):
    return forked(VERB, "export", *words)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dense checkpoint with a tokenizer and stop tokens, and its conversion."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"vocab_size": 300})))
    dense.generation_config.eos_token_id = [3, 7]
    dense.save_pretrained(root / "dense")
    train_bpe(["a text of some words"] * 3, 300).save_pretrained(root / "dense")
    (root / "dense" / "LICENSE").write_text("terms")
    model, receipt = vf.upcycle(root / "dense")
    model.generation_config.max_loops = 2
    with torch.no_grad():  # what training moves without gains matters nothing
        for name, weight in model.named_parameters():
            if "controller" in name:
                weight.normal_()
    model.save_pretrained(root / "reused")
    receipt.save(root / "reused" / "receipt.json")
    AutoTokenizer.from_pretrained(root / "dense").save_pretrained(root / "reused")
    return root


def test_the_command_brings_the_dense_checkpoint_back(folders, tmp_path):
    out = tmp_path / "again"
    done = run(folders / "reused", out, "--dense")
    assert done.returncode == 0, done.stderr
    before, after = (load_file(f / "model.safetensors") for f in (folders / "dense", out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    configs = [json.loads((f / "config.json").read_text()) for f in (folders / "dense", out)]
    assert configs[0] == configs[1]
    settings = json.loads((out / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [3, 7]
    assert "max_loops" not in settings
    assert AutoTokenizer.from_pretrained(out)("some words").input_ids
    assert (out / "LICENSE").read_text() == "terms"
    assert damage(out, files_of(read_record(out / "export.json"))) == []
    ids = make_ids(2, 9)
    dense, reuse = (AutoModelForCausalLM.from_pretrained(f) for f in (out, folders / "reused"))
    assert type(dense) is LlamaForCausalLM
    reuse.set_execution("masked")
    with torch.no_grad():
        assert torch.equal(dense(ids).logits, reuse(ids).logits)


def test_the_command_says_what_a_dense_model_would_lack(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders / "reused")
    with torch.no_grad():
        model.model.layers[1].gains.width_gain.fill_(1e-20)
    model.save_pretrained(tmp_path / "reused")
    done = run(tmp_path / "reused", tmp_path / "again", "--dense")
    assert done.returncode == 1
    assert "layer 1: gains.width_gain isn't 0" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["reused"]


def without_gains(**settings):
    model = make_model(**settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "gain" in name or "experts.down_proj" in name:
                weight.zero_()
    return model.set_execution("masked") or model


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "dense"},
        {"variant": "moe"},
        {"variant": "k-loop", "reuse_gains": "learned"},
        {"variant": "k-loop", "num_loops": 1},
        {"variant": "versatile", "reuse_gains": "learned", "reuse_layers": [1]},
        {"variant": "versatile", "reuse_gains": "learned", "loop_rank": 2},
        {"variant": "versatile", "reuse_gains": "learned", "fusion": "width"},
        {"variant": "versatile", "reuse_gains": "learned", "tie_word_embeddings": True},
        {"variant": "versatile", "max_loops": 1},
        {"variant": "versatile", "max_loops": 3, "fusion": "depth", "reuse_gains": "learned"},
    ],
    ids=str,
)
def test_logits_are_equal_to_the_bit(settings):
    model = without_gains(**settings)
    dense, ids = vf.to_dense(model), make_ids(2, 9)
    assert type(dense) is LlamaForCausalLM
    assert not {"reuse", "tau", "loop_curve"} & set(dense.config.to_dict())
    assert dense.config.tie_word_embeddings == settings.get("tie_word_embeddings", False)
    with torch.no_grad():
        assert torch.equal(dense(ids).logits, model(ids).logits)


def test_another_family_in_half_precision(tmp_path):
    torch.manual_seed(0)
    Gemma2ForCausalLM(Gemma2Config(**GEMMA)).bfloat16().save_pretrained(tmp_path)
    first = AutoModelForCausalLM.from_pretrained(tmp_path)
    model, _ = vf.upcycle(tmp_path)
    dense, ids = vf.to_dense(model), make_ids(2, 9)
    assert type(dense) is Gemma2ForCausalLM
    assert dense.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(dense(ids).logits, first(ids).logits)


@pytest.mark.parametrize("head", [head for head in HEADS if head != "ForCausalLM"])
def test_a_classifier_stays_one(head):
    model = make_classes("llama")[f"Llama{head}"](make_model(variant="dense").config).eval()
    dense, ids = vf.to_dense(model), make_ids(2, 9)
    assert type(dense).__name__ == f"Llama{head}"
    with torch.no_grad():
        expected = model(ids)
        found = dense(ids)
        assert all(torch.equal(found[name], expected[name]) for name in found if "logits" in name)
        assert any("logits" in name for name in found)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"variant": "versatile", "reuse_gains": "learned"}, "layer 0: gains.loop_gains isn't 0"),
        ({"variant": "versatile"}, "it loops 4 times with fixed gains"),
        ({"variant": "k-loop"}, "it loops 2 times with fixed gains"),
        ({"variant": "moe"}, "experts.down_proj isn't 0"),
        ({"variant": "versatile", "fusion": "width"}, "a fixed share"),
        ({"variant": "versatile", "fusion": "average", "max_loops": 1}, "a fixed share"),
        ({"variant": "k-loop", "num_loops": 1, "loop_scale": 0.5}, "loop_scale=0.5"),
    ],
    ids=str,
)
def test_what_adds_something_is_refused_by_name(settings, says):
    with pytest.raises(ConfigError, match=says):
        vf.to_dense(make_model(**settings))


def test_what_is_no_reuse_model_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="no model whose FFN is reused"):
        vf.to_dense(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    done = run(folders / "dense", tmp_path / "again", "--dense")
    assert done.returncode == 1
    assert "is a dense llama model" in done.stderr


def test_an_adapter_that_isn_t_merged_is_refused():
    model = without_gains(variant="versatile", reuse_gains="learned")
    model.model.layers[0].mlp.lora = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="weights its config doesn't know"):
        vf.to_dense(model)
