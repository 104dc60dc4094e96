"""`reuse_layers`: the chosen layers are reused, and the others are the dense model's own."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import versatileffn as vf
from support.families import tiny_dense
from support.models import make_config, make_ids, make_model
from versatileffn.analysis.activations import ffn_activation_bytes
from versatileffn.analysis.executed import executed_ffn_flops
from versatileffn.analysis.flops import model_cost
from versatileffn.errors import ConfigError
from versatileffn.evaluation.loops import layer_use, mean_loops
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.layer import NEW_TENSORS
from versatileffn.training.sizes import activation_bytes
from versatileffn.training.telemetry import Telemetry

FORMS = {
    "versatile": {"variant": "versatile"},
    "versatile-learned": {"variant": "versatile", "reuse_gains": "learned", "loop_rank": 2},
    "k-loop": {"variant": "k-loop", "num_loops": 3},
    "moe": {"variant": "moe"},
}


def added(model):
    return sum(
        p.numel() for n, p in model.named_parameters() if any(f".{new}" in n for new in NEW_TENSORS)
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_others_are_the_dense_layers_and_the_chosen_as_ever(form):
    """Layer by layer, against a model that reuses all and one that reuses none."""
    every = make_model(**form)
    some = make_model(**form, reuse_layers=[1])
    dense = make_model(variant="dense")
    weights = every.state_dict()
    some.load_state_dict({n: weights[n] for n in some.state_dict()})
    dense.load_state_dict({n: weights[n] for n in dense.state_dict()})
    ids = make_ids(2, 9)

    def states(model):
        with torch.no_grad():
            return model(ids, output_hidden_states=True).hidden_states

    assert torch.equal(states(some)[1], states(dense)[1])
    assert not torch.allclose(states(some)[1], states(every)[1])  # the control
    norm, layer = some.model.norm, every.model.layers[1]
    kwargs = {"position_embeddings": every.model.rotary_emb(states(some)[1], torch.arange(9)[None])}
    with torch.no_grad():
        expected = norm(layer(states(some)[1], **kwargs))
    torch.testing.assert_close(states(some)[-1], expected, rtol=0, atol=1e-6)
    assert added(some) * 2 == added(every)


def test_a_saved_model_comes_back_and_what_is_read_of_it_speaks_of_each_layer(tmp_path):
    model, ids = make_model(reuse_layers=(0,), fusion="depth"), make_ids(2, 9)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.ffn() == vf.Versatile(fusion="depth", reuse_layers=[0])
    out = again(ids, labels=ids, output_reuse_plans=True)
    assert torch.equal(out.logits, model(ids).logits)
    assert [plan.uniform for plan in out.reuse_plans] == [None, 1]
    first, second = layer_use(again, [ids])
    assert second.mean_loops is None
    assert mean_loops([first, second]) == first.mean_loops > 1
    telemetry = Telemetry(again)
    telemetry.add(out, ids)
    assert {name.split("/")[0] for name in telemetry.take()} == {"layer_1"}
    again.reuse_layers()[0].controller = again.reuse_layers()[1].controller
    with pytest.raises(ConfigError, match="a ConstantController decides"):
        again.save_pretrained(tmp_path / "other")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_costs_are_of_the_layers_that_are_reused(form):
    model, ids = make_model(**form, reuse_layers=[1]), make_ids(2, 9)
    cost, every = model_cost(model.config), model_cost(make_config(**form))
    dense = model_cost(make_config(variant="dense"))
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert (cost.once, 2 * cost.again, 2 * cost.experts) == (every.once, every.again, every.experts)
    assert 2 * (cost.parameters - dense.parameters) == every.parameters - dense.parameters
    use = mean_loops(layer_use(model, [ids])) if cost.needs_loops else None
    share = 0.5 if cost.needs_share() else None
    if not cost.width_down:
        counted = executed_ffn_flops(model, [ids]).ffn_per_token
        assert counted == pytest.approx(cost.ffn_flops(use, share))
    measured = [ffn_activation_bytes(c) for c in (make_config(variant="dense"), model.config)]
    assert measured[1] == pytest.approx(
        (measured[0] + ffn_activation_bytes(make_config(**form))) / 2
    )
    least = [activation_bytes(c, 100, False) for c in (model.config, make_config(**form))]
    assert least[0] <= least[1]
    if form["variant"] != "moe":
        assert least[0] < least[1]


def test_a_conversion_says_which_layers(tmp_path):
    dense, ids = tiny_dense("llama"), make_ids(2, 9)
    dense.save_pretrained(tmp_path)
    model, receipt = vf.upcycle(tmp_path, vf.Versatile(reuse_gains="learned", reuse_layers=[1]))
    assert receipt.reused_layers == [1]
    assert receipt.layers == dense.config.num_hidden_layers
    assert f"[1] of 0 to {receipt.layers - 1}" in str(receipt)
    assert all("layers.1." in name for name in receipt.new_tensors)
    torch.testing.assert_close(model(ids).logits, dense(ids).logits)
    whole, plain = vf.upcycle(tmp_path)
    assert "reused layers" not in str(plain)
    assert whole.config.ffn().reuse_layers is None


@pytest.mark.parametrize("family", ["gpt_neox", "phi3", "olmo2", "starcoder2"])
def test_every_family_counts_its_layers(family):
    dense = tiny_dense(family)
    config = vf.models.family.reuse_config(dense.config, vf.KLoop(reuse_layers=[0]))
    model = vf.models.family.model_class(config)(config)
    assert [layer.controller.num_loops for layer in model.reuse_layers()] == [2] + [1] * (
        dense.config.num_hidden_layers - 1
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "at least one"),
        ([0, 0], "different whole numbers from 0"),
        ([-1], "different whole numbers from 0"),
        ([True], "different whole numbers from 0"),
        (1, "must be a list of different whole numbers"),
        ("01", "must be a list of different whole numbers"),
    ],
    ids=str,
)
def test_bad_lists_are_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        FFNConfig.from_dict({"reuse_layers": value})


def test_a_layer_that_isnt_there_is_refused():
    with pytest.raises(ConfigError, match=r"reuse_layers=\[0, 2\] names layer 2 .* with 2 layers"):
        make_config(reuse_layers=[2, 0])
    with pytest.raises(ConfigError, match="a single layer has no number"):
        vf.VersatileFFN(16, 32, reuse_layers=[0])
    with pytest.raises(ConfigError, match="reuse_layers is a knob of"):
        make_config(variant="dense", reuse_layers=[0])


def test_a_list_and_a_tuple_in_any_order_are_one_record():
    assert vf.KLoop(reuse_layers=[2, 0]) == vf.KLoop(reuse_layers=(0, 2))
    assert vf.KLoop(reuse_layers=[2, 0]).to_dict()["reuse_layers"] == [0, 2]
