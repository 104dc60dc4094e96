"""Checkpoints that earlier versions wrote: flat fields in config.json, other names of the gains."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import versatileffn as vf
from support.models import SHAPE, make_ids
from versatileffn.errors import CheckpointError
from versatileffn.models.checkpoint import load_checkpoint, read_config
from versatileffn.models.family import model_class
from versatileffn.training.config import ModelSection
from versatileffn.training.init import build_model, model_config

FLAT = {
    "num_experts": 8, "num_experts_per_tok": 2, "d_expert": None, "max_loops": 4, "num_loops": 2,
    "fusion": "difficulty", "loop_mix": "hard", "reuse_gains": "learned", "tau": 0.7,
    "normed_controller": False, "router_aux_loss_coef": 1e-5, "execution": "recompute",
    "output_router_logits": False,
}  # fmt: skip
"""What each config.json had beside the dense model's fields, whatever its variant."""
OLD_NAMES = {
    "versatile": {"gains.loop_gains": "controller.loop_gains",
                  "gains.width_gain": "controller.width_gain"},
    "k-loop": {"gains.loop_gains": "gains.loop_gains"},
    "moe": {},
    "dense": {},
}  # fmt: skip
CONFIGS = {
    "versatile": vf.Versatile(reuse_gains="learned"),
    "k-loop": vf.KLoop(num_loops=2, reuse_gains="learned"),
    "moe": vf.MoE(reuse_gains="learned"),
    "dense": vf.Dense(),
}


@pytest.fixture(params=CONFIGS)
def old(request, tmp_path):
    """A folder as an earlier version wrote it, and the same model of today."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "dense")
    model, _ = vf.upcycle(tmp_path / "dense", CONFIGS[request.param])
    model.set_tau(0.7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gains." in name or "down_proj" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path / "old"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["reuse"]
    config |= FLAT | {"ffn_variant": request.param}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for new, earlier in OLD_NAMES[request.param].items():
        for layer in range(SHAPE["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            tensors[at + earlier] = tensors.pop(at + new)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, model


def same(loaded, model):
    ids = make_ids(2, 12)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    assert loaded.config.ffn() == model.config.ffn()
    assert loaded.config.tau == 0.7


def test_it_loads_everywhere_with_the_same_logits(old):
    folder, model = old
    same(AutoModelForCausalLM.from_pretrained(folder), model)
    config = read_config(folder)
    same(load_checkpoint(model_class(config), folder, config), model)
    section = ModelSection(init_from=str(folder))
    same(build_model(section, model_config(section, SHAPE["vocab_size"], None, 32), 0), model)


def test_saved_again_it_has_todays_form(old, tmp_path):
    folder, model = old
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["reuse"] == model.config.ffn().to_dict()
    assert not {"ffn_variant", "num_experts", "execution", "max_loops"} & saved.keys()
    names = load_file(tmp_path / "new" / "model.safetensors").keys()
    assert not [name for name in names if "controller." in name and "gain" in name]
    same(AutoModelForCausalLM.from_pretrained(tmp_path / "new"), model)


def test_it_is_no_source_to_upcycle_unless_it_is_dense(old):
    folder, model = old
    variant = model.config.ffn().variant
    if variant == "dense":
        assert vf.upcycle(folder)[1].logit_difference <= 1e-5
        return
    with pytest.raises(CheckpointError, match=f"already a {variant} model"):
        vf.upcycle(folder)


def test_a_variant_that_nobody_knows(tmp_path):
    config = LlamaConfig(**SHAPE).to_dict() | FLAT
    config |= {"model_type": "versatile_llama", "ffn_variant": "wide"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{tmp_path}: .*'wide' is unknown"):
        read_config(tmp_path)
