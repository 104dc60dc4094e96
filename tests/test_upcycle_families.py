"""Upcycling any family: what its receipt says, and what comes along beside the weights."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import versatileffn as vf
from support.families import TYPICAL, tiny_dense
from versatileffn.cli.upcycle import upcycle_command
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import CheckpointError
from versatileffn.models.checkpoint import load_checkpoint, read_config
from versatileffn.models.family import model_class
from versatileffn.models.weights import parameter_count

FREE = "width is a blend of loop 1's activations, no matrix product"
PAID = "the width pathway pays its own down-projection, none while s = 0"
BESIDE = "; beside attention: decisions read the residual stream before the layer"
LAYOUTS = {
    "llama": f"pre-norm: {FREE}",
    "granite": f"pre-norm: {FREE}; residual scale 0.7",
    "starcoder2": f"pre-norm: {FREE}",
    "phi3": f"pre-norm: {FREE}",
    "olmo2": f"post-norm: {PAID}",
    "gemma2": f"pre-norm and post-norm: {PAID}",
    "gpt_neox": f"pre-norm: {FREE}{BESIDE}",
    "cohere2": f"pre-norm: {FREE}{BESIDE}",
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module", params=TYPICAL)
def dense(request, tmp_path_factory):
    """A tiny checkpoint with everything that lies beside weights."""
    folder = tmp_path_factory.mktemp("families") / request.param
    model = tiny_dense(request.param, vocab_size=300)
    model.generation_config = GenerationConfig(eos_token_id=[5, 7], max_length=33, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer = train_bpe(["some words and others"] * 3, 300)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return request.param, folder, model


def test_the_receipt_says_where_norms_stand_and_what_width_costs(dense):
    family, folder, model = dense
    reused, receipt = vf.upcycle(folder)
    assert (receipt.family, receipt.layout) == (family, LAYOUTS[family])
    assert f"({family})" in str(receipt)
    assert receipt.parameters_before == model.num_parameters() == parameter_count(model.config)
    assert receipt.parameters_after == reused.num_parameters() == parameter_count(reused.config)
    assert receipt.logit_difference <= 1e-5
    _, plain = vf.upcycle(folder, vf.KLoop())
    assert plain.layout == LAYOUTS[family].replace(f": {FREE}", "").replace(f": {PAID}", "")


def test_weights_of_loops_are_a_reason_for_the_paid_layout_too(dense):
    _, folder, _ = dense
    _, receipt = vf.upcycle(folder, vf.Versatile(reuse_gains="learned", loop_rank=2))
    assert PAID in receipt.layout


def test_tokenizer_stop_tokens_and_chat_template_come_along(dense, tmp_path):
    _, folder, _ = dense
    out = tmp_path / "out"
    upcycle_command(str(folder), out, num_experts=4)
    kept = GenerationConfig.from_pretrained(out)
    assert (kept.eos_token_id, kept.max_length) == ([5, 7], 33)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("words").input_ids == AutoTokenizer.from_pretrained(folder)("words").input_ids
    config = read_config(out)
    assert config.ffn() == vf.Versatile(num_experts=4, reuse_gains="learned")
    loaded = load_checkpoint(model_class(config), out, config)
    assert type(loaded) is type(AutoModelForCausalLM.from_pretrained(out))
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["ffn"] == config.ffn().to_dict()


def test_weights_that_are_missing_are_missed_in_every_family(dense, tmp_path):
    _, _, model = dense
    state = model.state_dict()
    name = next(n for n in state if n.endswith("layers.1.self_attn.o_proj.weight") or "dense" in n)
    del state[name]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        vf.upcycle(tmp_path)
