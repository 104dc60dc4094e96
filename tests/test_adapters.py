"""LoRA by PEFT, with the configuration that the package ships, and without."""

import logging
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import versatileffn as vf
from support.families import tiny_config
from support.models import SHAPE, VARIANTS, make_ids, make_model
from versatileffn.errors import ConfigError
from versatileffn.execution.select import execution_choices, forget_choices
from versatileffn.models.family import family_of, make_classes, model_class, reuse_config

LEARNED = {"variant": "versatile", "reuse_gains": "learned"}


@pytest.fixture
def base(tmp_path):
    """A fresh conversion, every gain 0, in a folder."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "dense")
    vf.upcycle(tmp_path / "dense")[0].save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def train(model, steps=3):
    ids = make_ids(2, 9)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    torch.manual_seed(0)
    model.train()
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=make_ids(2, 9)).logits


def test_adapters_gains_and_controllers_train_and_nothing_else(base):
    model = load(base)
    wrapped = get_peft_model(model, vf.lora_config(model, r=4))
    before = {name: weight.clone() for name, weight in wrapped.named_parameters()}
    train(wrapped)
    moved = {n for n, weight in wrapped.named_parameters() if not torch.equal(weight, before[n])}
    parts = ("lora_", "gains.modules_to_save", "controller.modules_to_save")
    assert moved == {name for name in before if any(part in name for part in parts)}
    for name in ("q_proj", "o_proj", "gate_proj", "down_proj", "loop_gains", "width_gain"):
        assert any(name in found for found in moved)


def test_saved_loaded_and_merged_it_is_the_same(base, tmp_path):
    model = load(base)
    wrapped = train(get_peft_model(model, vf.lora_config(model, r=4)))
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = logits(wrapped)
    loaded = PeftModel.from_pretrained(load(base), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded), expected)
    assert (expected - logits(load(base))).abs().max() > 1e-3
    with wrapped.disable_adapter():  # the reference of preference losses
        assert torch.equal(logits(wrapped), logits(load(base)))
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert torch.equal(logits(again), logits(merged))
    assert type(again) is type(model)


def test_what_a_running_model_can_be_told_reaches_wrapped_parts(base):
    model = load(base)
    wrapped = train(get_peft_model(model, vf.lora_config(model)))
    wrapped.set_tau(0.3)
    wrapped.set_reuse_noise(False)
    for layer in model.reuse_layers():
        assert layer.controller.modules_to_save["default"].tau == 0.3
        assert layer.controller.modules_to_save["default"].noise is False
    ids = make_ids(2, 9)
    with vf.compute_budget(wrapped, max_loops=1), torch.no_grad():
        plans = wrapped(input_ids=ids, output_reuse_plans=True).reuse_plans
        assert all(plan.loop_count.max() == 1 for plan in plans)
        capped = logits(wrapped)
    merged = wrapped.merge_and_unload()
    with vf.compute_budget(merged, max_loops=1):  # in the shortcut for one loop
        torch.testing.assert_close(logits(merged), capped, rtol=1e-4, atol=1e-4)


def test_another_executor_trains_and_that_is_said_once(base, caplog):
    forget_choices()
    model = load(base)
    with caplog.at_level(logging.WARNING, "versatileffn"):
        train(get_peft_model(model, vf.lora_config(model)))
    told = [record.getMessage() for record in caplog.records if "falls back" in record.message]
    assert len(told) == 1
    assert "falls back to 'masked'" in told[0]
    assert "adapters" in told[0]
    assert "masked" in {choice["executor"] for choice in execution_choices()}
    logits(model)
    assert "packed" in {choice["executor"] for choice in execution_choices()}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_gains_that_stay_zero_are_told_of_once(base, targets):
    wrapped = get_peft_model(load(base), LoraConfig(target_modules=targets))
    with pytest.warns(UserWarning, match="all learned gains are 0") as said:
        train(wrapped)
    assert sum("all learned gains" in str(w.message) for w in said) == 1


def test_nobody_is_warned_without_need(base):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(base)
        train(get_peft_model(model, vf.lora_config(model)), 1)
        train(load(base), 1)
        trained = load(base)
        with torch.no_grad():
            trained.model.layers[0].gains.width_gain.fill_(0.1)
        train(get_peft_model(trained, LoraConfig(target_modules=["q_proj"])), 1)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_trains_all_that_its_reuse_adds(settings):
    model = make_model(**settings)
    added = {n for n, _ in model.named_parameters() if ".mlp." not in n and ".layers." in n}
    added = {n for n in added if "self_attn" not in n and "layernorm" not in n}
    wrapped = train(get_peft_model(model, vf.lora_config(model)), 1)
    trained = {n for n, weight in wrapped.named_parameters() if weight.requires_grad}
    whole = {n.replace(".modules_to_save.default", "") for n in trained if "lora_" not in n}
    assert whole == {f"base_model.model.{name}" for name in added}


@pytest.mark.parametrize("model_type", ["phi3", "gpt_neox", "starcoder2", "gemma2"])
def test_the_targets_are_what_the_family_calls_them(model_type):
    config = reuse_config(tiny_config(model_type), vf.Versatile(reuse_gains="learned"))
    model = model_class(config)(config)
    row, chosen = family_of(model_type), vf.lora_config(model)
    assert {*row.proj, row.down} < chosen.target_modules
    wrapped = get_peft_model(model, chosen)
    adapted = {n for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    linears = len([m for m in model.reuse_layers()[0].modules() if hasattr(m, "lora_A")])
    assert len(adapted) == linears * len(model.reuse_layers())
    assert linears >= len(row.proj) + 3


def test_options_are_peft_s():
    model = make_model(**LEARNED)
    chosen = vf.lora_config(
        model, r=3, lora_alpha=6, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    assert (chosen.r, chosen.lora_alpha, chosen.target_modules) == (3, 6, {"q_proj"})
    assert set(chosen.modules_to_save) == {"controller", "gains", "lm_head"}
    assert chosen.task_type == "CAUSAL_LM"
    labelled = make_classes("llama")["LlamaForSequenceClassification"](model.config)
    assert vf.lora_config(labelled).task_type == "SEQ_CLS"


def test_adapters_by_transformers_own_verb(base, tmp_path):
    model = load(base)
    model.add_adapter(vf.lora_config(model))
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(base), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(model))
    assert (logits(model) - logits(load(base))).abs().max() > 1e-3


def test_a_dense_model_is_refused():
    with pytest.raises(ConfigError, match="no model whose FFN is reused"):
        vf.lora_config(LlamaForCausalLM(LlamaConfig(**SHAPE)))
