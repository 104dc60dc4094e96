"""Learned gains: where they start, and what a conversion says of it."""

import pytest
import torch

import versatileffn as vf
from support.families import tiny_dense
from support.models import make_config, make_ids
from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.gains import with_scale
from versatileffn.models.family import model_class
from versatileffn.training.init import truncated_init
from versatileffn.upcycle import EXACT


@pytest.mark.parametrize(
    "config", [vf.Versatile(reuse_gains="learned"), vf.KLoop(3, reuse_gains="learned")], ids=str
)
def test_all_gains_start_where_they_are_told(config):
    for start in (0.0, 1.0, -0.5):
        layer = vf.VersatileFFN(16, 32, config, gain_init=start)
        gains = torch.cat(list(layer.gains.parameters()))
        assert torch.equal(gains, torch.full_like(gains, start))
        gains = layer.gains
        gains.reset_parameters(0.3)
        assert all((gain == start).all() for gain in gains.parameters())


def test_gains_from_one_compute_the_papers_loops():
    """γ = 1 is a k-loop with fixed gains; 0, the control, is not."""
    hidden = torch.randn(5, 16)
    loops = {}
    for name, knobs in {
        "fixed": {},
        "one": {"reuse_gains": "learned", "gain_init": 1.0},
        "zero": {"reuse_gains": "learned"},
    }.items():
        torch.manual_seed(0)
        loops[name] = vf.VersatileFFN(16, 32, vf.KLoop(3, **knobs))(hidden).hidden
    torch.testing.assert_close(loops["one"], loops["fixed"])
    assert not torch.allclose(loops["zero"], loops["fixed"], atol=1e-3)


@pytest.mark.parametrize("config", [vf.Versatile(), vf.KLoop(4)], ids=str)
def test_with_a_scale_of_a_quarter_four_loops_add_a_quarter_each(config):
    """Where the FFN adds the same in every loop; and a k-loop with one loop isn't the dense FFN."""
    hidden = torch.randn(7, 16)
    layer = vf.VersatileFFN(16, 32, config, loop_scale=0.25)
    plan = layer.decide(hidden, layer.mlp.view(layer.norm))
    assert plan.loop_gains.tolist() == [0.25] * 4
    plan.check()
    assert not vf.KLoop(1, loop_scale=0.25).starts_exactly
    assert vf.KLoop(1).starts_exactly


def test_a_scale_multiplies_the_gains_that_a_plan_has_already():
    plan = vf.VersatileFFN(16, 32, vf.Versatile()).eval().controller(torch.randn(7, 16))
    own = torch.tensor([1.0, 2.0, 0.0, -3.0])
    assert with_scale(plan.with_gains(own, None), 0.25).loop_gains.tolist() == [0.25, 0.5, 0, -0.75]


def test_a_model_from_scratch_keeps_the_start_and_a_checkpoint_its_values(tmp_path):
    config = make_config(reuse_gains="learned", gain_init=0.75, reuse_layers=[1])
    model = model_class(config)(config)
    truncated_init(model, 0.02, seed=0)
    gains = dict(model.reuse_layers()[1].gains.named_parameters())
    assert gains["loop_gains"].tolist() == [0.75] * 3
    with torch.no_grad():
        gains["width_gain"].fill_(0.25)
    model.save_pretrained(tmp_path)
    again = vf.VersatileLlamaForCausalLM.from_pretrained(tmp_path)
    assert again.reuse_layers()[1].gains.width_gain.item() == 0.25
    assert again.config.ffn().gain_init == 0.75


@pytest.mark.parametrize("variant", [vf.Versatile, vf.KLoop])
def test_a_conversion_from_another_start_is_not_exact_and_says_so(variant, tmp_path):
    dense, ids = tiny_dense("llama"), make_ids(2, 9)
    dense.save_pretrained(tmp_path)
    for start in (0.0, 1.0):
        config = variant(reuse_gains="learned", gain_init=start)
        model, receipt = vf.upcycle(tmp_path, config)
        exact = torch.allclose(model(ids).logits, dense(ids).logits, atol=1e-4)
        assert config.starts_exactly == exact == (start == 0)
        assert (receipt.expected == EXACT) == exact
        assert ("gains that start at 1" in str(receipt)) != exact
    assert vf.KLoop(1, reuse_gains="learned", gain_init=1.0).starts_exactly


def test_a_start_without_learned_gains_is_refused():
    with pytest.raises(
        ConfigError, match="reuse_gains='fixed' has none: set reuse_gains='learned'"
    ):
        FFNConfig.from_dict({"gain_init": 1.0})
    with pytest.raises(ConfigError, match="gain_init is a knob of"):
        FFNConfig.from_dict({"variant": "moe", "gain_init": 1.0})
    with pytest.raises(ConfigError, match="gain_init='1' must be a finite number"):
        FFNConfig.from_dict({"gain_init": "1"})
