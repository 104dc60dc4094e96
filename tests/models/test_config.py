"""A config carries the reuse in one field, refuses knobs elsewhere, and reads those of old."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import versatileffn as vf
from support.models import SHAPE, make_config, make_ids, make_model
from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.models.family import is_reuse, reuse_config

MOE_NAMES = {"num_experts", "num_experts_per_tok", "num_local_experts", "router_aux_loss_coef"}
"""By which other libraries tell that a model has real experts."""
OLD = {
    "ffn_variant": "versatile",
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "d_expert": None,
    "max_loops": 3,
    "num_loops": 2,
    "fusion": "difficulty",
    "loop_mix": "hard",
    "reuse_gains": "learned",
    "normed_controller": False,
    "router_aux_loss_coef": 1e-3,
    "tau": 0.7,
    "execution": "packed",
    "output_router_logits": False,
}
"""What version 0.1 wrote beside the dense model's fields."""


def test_the_reuse_is_one_field(tmp_path):
    config = make_config(num_experts=4, top_k=1, tau=1.25)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["reuse"] == vf.Versatile(num_experts=4, top_k=1).to_dict()
    assert written["tau"] == 1.25
    assert not MOE_NAMES & set(written)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is vf.VersatileLlamaConfig
    assert loaded.ffn() == config.ffn() == vf.Versatile(num_experts=4, top_k=1)


def test_the_default_is_the_papers():
    assert vf.VersatileLlamaConfig(**SHAPE).ffn() == vf.Versatile()


def test_a_config_gets_another_reuse():
    dense = LlamaConfig(**SHAPE, rope_theta=5e5)
    config = reuse_config(dense, vf.KLoop(num_loops=3))
    assert (config.ffn(), is_reuse(config), is_reuse(dense)) == (vf.KLoop(num_loops=3), True, False)
    again = reuse_config(config, vf.Dense())
    assert again.ffn() == vf.Dense()
    assert again.rope_parameters == dense.rope_parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reuse": {"variant": "wide"}}, "variant='wide' is unknown"),
        ({"reuse": {"top_k": 9}}, "top_k=9 exceeds num_experts=8"),
        ({"reuse": {"max_loops": 0}}, "max_loops=0 must be"),
        ({"reuse": {"d_expert": 9}}, "exceeds d_hidden=64"),
        ({"reuse": {"variant": "moe", "max_loops": 2}}, "max_loops"),
        ({"reuse": {"num_expert": 4}}, "num_expert"),
        ({"reuse": "moe"}, "must be a mapping"),
        ({"variant": "moe"}, "variant is no field of this config: use reuse={'variant'"),
        ({"ffn_variant": "moe"}, "use reuse={'variant'"),
        ({"top_k": 1}, "use reuse={'top_k'"),
        ({"num_experts_per_tok": 1}, "use reuse={'top_k'"),
        ({"num_expert": 4}, "use reuse={'num_experts'"),
        ({"execution": "masked"}, "call model.set_execution"),
        ({"reuses": {}}, "use reuse"),
        ({"output_router_logits": 1}, "output_router_logits=1 must be"),
    ],
    ids=str,
)
def test_bad_settings_name_cause_and_remedy(settings, message):
    with pytest.raises(ConfigError, match=message):
        vf.VersatileLlamaConfig(**(SHAPE | settings))


def test_an_old_checkpoint_loads_and_is_saved_anew(tmp_path):
    """Flat fields, `execution` among them, and gains that were the controller's."""
    model, ids = (
        make_model(num_experts=4, top_k=1, max_loops=3, reuse_gains="learned"),
        make_ids(2, 9),
    )
    old, new = tmp_path / "old", tmp_path / "new"
    model.save_pretrained(old)
    fields = json.loads((old / "config.json").read_text())
    del fields["reuse"]
    (old / "config.json").write_text(json.dumps(fields | OLD))
    tensors = load_file(old / "model.safetensors")
    renamed = {name.replace(".gains.", ".controller."): t for name, t in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, old / "model.safetensors", {"format": "pt"})

    loaded = AutoModelForCausalLM.from_pretrained(old)
    assert loaded.config.ffn() == model.config.ffn().replace(router_aux_loss_coef=1e-3)
    assert loaded.config.tau == 0.7
    assert {layer.execution for layer in loaded.reuse_layers()} == {"auto"}
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.save_pretrained(new)
    assert load_file(new / "model.safetensors").keys() == tensors.keys()
    written = json.loads((new / "config.json").read_text())
    assert not (OLD.keys() - {"tau", "output_router_logits"}) & written.keys()


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("dense", vf.Dense()),
        ("k-loop", vf.KLoop(reuse_gains="learned")),
        ("moe", vf.MoE(num_experts=4, top_k=1, reuse_gains="learned", router_aux_loss_coef=1e-3)),
    ],
)
def test_an_old_config_keeps_its_variants_knobs_alone(variant, expected):
    config = vf.VersatileLlamaConfig.from_dict(SHAPE | OLD | {"ffn_variant": variant})
    assert config.ffn() == expected


def test_an_old_config_of_no_variant_is_refused():
    with pytest.raises(ConfigError, match="ffn_variant='wide' is unknown"):
        vf.VersatileLlamaConfig.from_dict(SHAPE | OLD | {"ffn_variant": "wide"})


@pytest.mark.parametrize("lost", [True, False], ids=["missing", "unknown"])
def test_a_checkpoint_whose_controller_is_another_is_refused(lost, tmp_path):
    """Transformers would draw the missing one at random and say so in a log."""
    make_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.controller.router.weight"
    other = name.replace("router", "chooser")
    if lost:
        tensors[other] = tensors.pop(name)
    else:
        tensors[other] = tensors[name].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    says = f"lacks .*{name}" if lost else f"has unknown .*{other}"
    with pytest.raises(CheckpointError, match=says):
        AutoModelForCausalLM.from_pretrained(tmp_path)
