"""Somebody's own controller is saved, loaded and trained by its name, or refused."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import versatileffn as vf
from support.forked import forked
from support.models import make_ids, make_model
from versatileffn.errors import ConfigError
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.plan_fields import one_hot_loops
from versatileffn.ffn.registry import CONTROLLERS


class FirstNeurons(nn.Module):
    """Chooses the depth by a table of its own, which it draws by a rule of its own."""

    def __init__(self, d_model, d_hidden, config):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.max_loops))
        self.reset_parameters()

    def reset_parameters(self, std=0.02):
        nn.init.constant_(self.bias, 1 + std)

    def forward(self, hidden):
        logits = hidden[..., : len(self.bias)] * self.bias
        choice = logits.argmax(-1) + 1
        probs = one_hot_loops(choice, len(self.bias)) + (logits - logits.detach())
        return ReusePlan(choice, probs, lam=torch.zeros_like(probs[..., 0]))


@pytest.fixture
def named():
    vf.register_controller("first-neurons")(FirstNeurons)
    yield "first-neurons"
    del CONTROLLERS["first-neurons"]


def test_it_is_saved_loaded_and_trained_by_name(named, tmp_path):
    model, ids = make_model(controller=named, fusion="depth"), make_ids(2, 9)
    for layer in model.reuse_layers():
        assert layer.controller.bias.unique().tolist() == pytest.approx([1.2])  # by its own rule
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(layer.controller.bias.grad.any() for layer in model.reuse_layers())
    with torch.no_grad():
        for layer in model.reuse_layers():
            layer.controller.bias.normal_()
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_name_that_nobody_registered(named, tmp_path):
    make_model(controller=named, fusion="depth").save_pretrained(tmp_path)
    code = (
        "import versatileffn, transformers as t; "
        f"t.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})"
    )
    out = forked("-c", code)
    assert out.returncode
    assert "controller='first-neurons' is unknown" in out.stderr
    assert "import the module that has @register_controller" in out.stderr


def test_saving_one_that_the_config_does_not_name(named, tmp_path):
    """A reload would put another in its place, drawn at random."""
    model = make_model(fusion="depth")
    for layer in model.reuse_layers():
        layer.controller = FirstNeurons(32, 64, model.config.ffn())
    with pytest.raises(ConfigError, match=r"a FirstNeurons decides.*@register_controller"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model.config.reuse["controller"] = named
    model.save_pretrained(tmp_path)
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path), make_ids(2, 9)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loops = make_model(variant="k-loop")
    loops.reuse_layers()[1].controller = FirstNeurons(32, 64, vf.Versatile(max_loops=2))
    with pytest.raises(ConfigError, match="a FirstNeurons decides"):
        loops.save_pretrained(tmp_path)


class ByToken(FirstNeurons):
    """Chooses the depth by the tokens themselves."""

    def see(self, input_ids):
        self.ids = input_ids

    def forward(self, hidden):
        return super().forward(hidden).with_loops(self.ids % len(self.bias) + 1)


def test_a_controller_that_asks_is_shown_the_tokens():
    vf.register_controller("by-token")(ByToken)
    try:
        model = make_model(controller="by-token", fusion="depth")
        ids = make_ids(2, 9)
        for given in ((ids,), ()):
            out = model(*given, **({} if given else {"input_ids": ids}), output_reuse_plans=True)
            assert all(torch.equal(p.loop_count, ids % 4 + 1) for p in out.reuse_plans)
    finally:
        del CONTROLLERS["by-token"]
