"""The Llama models behave as Transformers' users expect, in every variant."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import versatileffn as vf
from support.models import SHAPE, VARIANTS, make_ids, make_model
from versatileffn.errors import ConfigError
from versatileffn.ffn.balance import balance_loss

every_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())


@every_variant
def test_saving_and_loading_changes_nothing(settings, tmp_path):
    model, ids = make_model(**settings), make_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is vf.VersatileLlamaForCausalLM
    assert loaded.config.ffn() == model.config.ffn()
    for (name, before), after in zip(
        model.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after), name
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_the_temperature_is_saved(tmp_path):
    model = make_model()
    model.set_tau(0.37)
    model.save_pretrained(tmp_path)
    assert [layer.controller.tau for layer in model.model.layers] == [0.37, 0.37]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [layer.controller.tau for layer in loaded.model.layers] == [0.37, 0.37]


@every_variant
def test_every_cache_generates_the_same_tokens(settings):
    model, ids = make_model(**settings), make_ids(2, 7)
    arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, use_cache=False, **arguments)
    assert torch.equal(plain, model.generate(ids, use_cache=True, **arguments))
    static = model.generate(ids, cache_implementation="static", **arguments)
    assert torch.equal(plain, static)


@every_variant
def test_left_padding_and_batching_change_nothing(settings):
    model = make_model(**settings)
    short, long = make_ids(1, 5, seed=3), make_ids(1, 9, seed=4)
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    batch = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    together = model.generate(batch, attention_mask=mask, **arguments)
    assert torch.equal(together[0, 9:], model.generate(short, **arguments)[0, 5:])
    assert torch.equal(together[1, 9:], model.generate(long, **arguments)[0, 9:])


@every_variant
def test_gradient_checkpointing_changes_no_gradient(settings):
    ids = make_ids(2, 11)
    gradients = []
    for checkpointing in (False, True):
        model = make_model(**settings).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected is not None, name
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


def test_one_loop_without_width_is_transformers_llama():
    dense = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    model = make_model(max_loops=1)
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected
    assert all(".controller." in name for name in missing)
    ids = make_ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense(ids).logits)


def cross_entropy(logits, ids):
    """Nats per predicted token."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("variant", ["moe", "versatile"])
def test_the_balance_loss_is_in_the_training_loss_alone(variant):
    model, ids = make_model(variant=variant, router_aux_loss_coef=0.5), make_ids(2, 9)
    out = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits, ids))
    assert out.aux_loss is None
    out = model(input_ids=ids, labels=ids, output_router_logits=True)
    assert out.aux_loss is not None
    torch.testing.assert_close(out.loss, cross_entropy(out.logits, ids))
    model.train()
    out = model(input_ids=ids, labels=ids)
    by_layer = [balance_loss(logits, 2) for logits in out.router_logits]
    assert len(by_layer) == 2
    torch.testing.assert_close(out.aux_loss, sum(by_layer) / 2)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits, ids) + 0.5 * sum(by_layer) / 2)


@pytest.mark.parametrize("variant", ["moe", "versatile"])
def test_the_balance_loss_trains_the_router(variant):
    ids = make_ids(2, 9)
    gradients = []
    for coefficient in (0.0, 1.0):
        model = make_model(variant=variant, router_aux_loss_coef=coefficient).train()
        torch.manual_seed(0)
        out = model(input_ids=ids, labels=ids)
        routers = [p for n, p in model.named_parameters() if ".router." in n]
        alone = torch.autograd.grad(out.aux_loss, routers, retain_graph=True)
        gradients.append((torch.autograd.grad(out.loss, routers), alone))
    (without, _), (with_loss, alone) = gradients
    for absent, present, expected in zip(without, with_loss, alone, strict=True):
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(present - absent, expected, rtol=1e-3, atol=1e-6)


def test_reentrant_checkpointing_is_refused_instead_of_losing_a_gradient():
    model, ids = make_model(router_aux_loss_coef=1e-2).train(), make_ids(2, 9)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(ConfigError, match="use_reentrant"):
        model(input_ids=ids, labels=ids, use_cache=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".controller." not in name)
    assert model(input_ids=ids, labels=ids, use_cache=False).loss.requires_grad


def test_the_recorded_router_logits_are_those_of_the_plan():
    """Whatever stands in the router's place: an adapter, a quantized linear."""
    model, ids = make_model(), make_ids(2, 9)
    for layer in model.model.layers:
        layer.controller.router = torch.nn.Sequential(layer.controller.router, torch.nn.Tanh())
    out = model(ids, output_router_logits=True, output_reuse_plans=True)
    for logits, plan in zip(out.router_logits, out.reuse_plans, strict=True):
        assert torch.equal(logits, plan.router_logits.flatten(0, 1))
        assert logits.abs().max() <= 1


@pytest.mark.parametrize("variant", ["moe", "versatile"])
def test_accumulation_averages_the_balance_loss(variant):
    """Micro-batches of uneven length: their losses add up to a token-weighted mean, not a sum."""
    once = {"max_loops": 1} if variant == "versatile" else {}  # no noise
    model = make_model(variant=variant, router_aux_loss_coef=10.0, **once).train()
    batches = [make_ids(1, 9, seed=s) for s in range(3)] + [make_ids(1, 5, seed=9)]
    items = sum(b.shape[1] - 1 for b in batches)
    losses = [model(input_ids=b, labels=b, num_items_in_batch=items).loss for b in batches]
    whole = [model(input_ids=b, labels=b).loss * (b.shape[1] - 1) / items for b in batches]
    torch.testing.assert_close(sum(losses), sum(whole))


def test_a_share_counts_predicted_tokens_as_trainer_does():
    model, ids = make_model(router_aux_loss_coef=1.0, max_loops=1).train(), make_ids(2, 6)
    labels = ids.clone()
    labels[0, 3:] = -100

    def balance(items, **keywords):
        """The balance loss's part of the training loss."""
        model.router_aux_loss_coef = 0.0
        without = model(ids, labels=labels, num_items_in_batch=items, **keywords).loss
        model.router_aux_loss_coef = 1.0
        out = model(ids, labels=labels, num_items_in_batch=items, **keywords)
        return ((out.loss - without) / out.aux_loss).item()

    assert balance(None) == pytest.approx(1.0, rel=1e-4)
    assert balance(14) == pytest.approx(7 / 14, rel=1e-4)
    assert balance(18, shift_labels=labels) == pytest.approx(9 / 18, rel=1e-4)


def test_padding_does_not_count_in_the_balance_loss():
    model, ids = make_model(router_aux_loss_coef=1.0), make_ids(1, 8)
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
    mask = (padded != 0).long()
    alone = model(ids, output_router_logits=True).aux_loss
    torch.testing.assert_close(
        model(padded, attention_mask=mask, output_router_logits=True).aux_loss, alone
    )
    assert not torch.isclose(model(padded, output_router_logits=True).aux_loss, alone)


def test_no_gradients_flow_where_none_should(tmp_path):
    """Every parameter of every variant is trained: none is left without a gradient."""
    ids = make_ids(2, 9)
    for settings in VARIANTS.values():
        model = make_model(**settings).train()
        model(input_ids=ids, labels=ids).loss.backward()
        idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not idle, settings


def test_unused_neurons_are_reported():
    with pytest.warns(UserWarning, match="4 of 64 hidden neurons belong to no expert"):
        make_model(num_experts=3, d_expert=20)


def test_bfloat16_generates():
    model = copy.deepcopy(make_model()).to(torch.bfloat16)
    out = model.generate(make_ids(2, 5), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape == (2, 9)


def test_knobs_and_the_execution_reach_the_layers():
    ids = make_ids(2, 9)
    plain, normed = make_model(), make_model(normed_controller=True)
    with torch.no_grad():
        assert not torch.allclose(plain(ids).logits, normed(ids).logits)
    with pytest.raises(ConfigError, match="execution='packed' is impossible here"):
        make_model(execution="packed", loop_mix="soft")(ids)
    with pytest.raises(ConfigError, match="execution='fast' is unknown"):
        plain.set_execution("fast")


def test_logits_to_keep():
    model, ids = make_model(), make_ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


def test_new_weights_have_the_familys_scale():
    model = make_model(hidden_size=64, intermediate_size=512, initializer_range=0.02)
    moe = make_model(variant="moe", hidden_size=64, intermediate_size=512, initializer_range=0.02)
    controller, experts = model.model.layers[0].controller, moe.model.layers[0].experts
    for weight in (
        controller.router.weight,
        controller.loop_head.weight,
        experts.gate_up_proj,
        experts.down_proj,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_half_precision_decides_in_float32():
    model, ids = make_model().to(torch.bfloat16), make_ids(2, 9)
    plan = model(ids, output_reuse_plans=True).reuse_plans[0]
    assert plan.router_logits.dtype == plan.gates.dtype == plan.loop_probs.dtype == torch.float32
    moe = make_model(variant="moe").to(torch.bfloat16)
    assert moe(ids, output_router_logits=True).router_logits[0].dtype == torch.float32


@pytest.mark.parametrize("tau", [0, -1.0, float("nan"), float("inf"), "a", None, True], ids=str)
def test_bad_temperatures(tau):
    with pytest.raises(ConfigError, match="tau="):
        make_model().set_tau(tau)
