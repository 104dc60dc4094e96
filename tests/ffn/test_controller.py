import pytest
import torch

from support.layers import gumbel, make_hidden, make_layer
from versatileffn.ffn.controller import sample_gumbel
from versatileffn.ffn.plan import ReusePlan
from versatileffn.layer import VersatileFFN


def test_only_the_controller_is_new():
    layer = make_layer()
    names = {name for name, _ in layer.named_parameters()}
    dense = {"norm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"}
    assert names - dense == {"controller.router.weight", "controller.loop_head.weight"}
    assert layer.controller.router.bias is None
    assert layer.controller.loop_head.bias is None


def test_learned_gains_are_l_scalars():
    layer = make_layer(reuse_gains="learned", max_loops=4, gains_at=0.0)
    gains = {name: p.shape for name, p in layer.gains.named_parameters()}
    assert gains == {"loop_gains": (3,), "width_gain": (1,)}
    assert all(not p.any() for p in VersatileFFN(16, 32, reuse_gains="learned").gains.parameters())


def test_evaluation_is_argmax_and_draws_nothing():
    layer, hidden = make_layer().eval(), make_hidden(3, 5, 16)
    state = torch.get_rng_state()
    plan = layer.controller(hidden)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(plan.loop_count, layer.controller.loop_head(hidden).argmax(-1) + 1)
    assert plan.loop_count.shape == (3, 5)
    assert plan.gates.shape == plan.experts.shape == (3, 5, 2)


def test_training_draws_noise_and_given_noise_is_used():
    layer, hidden = make_layer(), make_hidden(200, 16)
    first, second = layer.controller(hidden), layer.controller(hidden)
    assert not torch.equal(first.loop_count, second.loop_count)
    noise = gumbel(hidden, 4)
    expected = (layer.controller.loop_head(hidden) + noise).argmax(-1) + 1
    assert torch.equal(layer.controller(hidden, noise).loop_count, expected)


def test_gumbel_noise_has_the_right_distribution():
    torch.manual_seed(0)
    noise = sample_gumbel(torch.empty(200_000))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.02)
    assert noise.isfinite().all()


def test_straight_through_is_exactly_one_hot():
    plan = make_layer(dtype=torch.float32).controller(make_hidden(500, 16, dtype=torch.float32))
    assert ((plan.loop_probs == 0) | (plan.loop_probs == 1)).all()
    assert torch.equal(plan.loop_probs.argmax(-1) + 1, plan.loop_count)
    assert torch.equal(plan.lam, 1 - plan.loop_count / 4)
    assert plan.loop_probs.requires_grad


def test_a_lower_temperature_sharpens_the_gradient_path():
    layer, hidden = make_layer(loop_mix="soft"), make_hidden(50, 16)
    noise = gumbel(hidden, 4)
    peaks = []
    for tau in (5.0, 0.1):
        layer.controller.tau = tau
        peaks.append(layer.controller(hidden, noise).loop_probs.max(-1).values.mean())
    assert peaks[0] < 0.6 < 0.9 < peaks[1]


def test_normed_controller_reads_the_normed_stream():
    layer = make_layer(normed_controller=True).eval()
    hidden = make_hidden(6, 16)
    plan = layer(hidden).plan
    assert torch.equal(plan.router_logits, layer.controller.router(layer.norm(hidden)))


def test_a_given_plan_is_carried_out():
    layer, hidden = make_layer().eval(), make_hidden(2, 5, 16)
    free = layer(hidden)
    other = layer.controller(-hidden)
    assert torch.equal(layer(hidden, free.plan).hidden, free.hidden)
    assert not torch.allclose(layer(hidden, other).hidden, free.hidden)


def test_a_plan_that_contradicts_itself_is_refused():
    layer, hidden = make_layer().eval(), make_hidden(5, 16)
    plan = layer.controller(hidden)
    plan.loop_count = torch.full_like(plan.loop_count, 6)
    with pytest.raises(ValueError, match="1 to max_loops=4"):
        layer(hidden, plan)
    plan.loop_count = torch.full_like(plan.loop_count, 2)
    with pytest.raises(ValueError, match="one-hot at loop_count"):
        layer(hidden, plan)
    plan.loop_probs = torch.nn.functional.one_hot(plan.loop_count - 1, 4).double()
    assert layer(hidden, plan).hidden.isfinite().all()


def test_a_single_token_without_a_batch():
    layer, hidden = make_layer().eval(), make_hidden(3, 16)
    torch.testing.assert_close(layer(hidden[1]).hidden, layer(hidden).hidden[1])
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden[1]).hidden, layer(hidden).hidden[1])


def test_a_plan_for_other_tokens_is_refused():
    layer = make_layer()
    plan = layer.controller(make_hidden(3, 16))
    with pytest.raises(ValueError, match="leading dimensions must agree"):
        layer(make_hidden(4, 16), plan)


class AlwaysTwice(torch.nn.Module):
    """Somebody else's way to decide, and a way to get it wrong."""

    def __init__(self, forget_probs=False):
        super().__init__()
        self.forget_probs = forget_probs

    def forward(self, hidden, gumbel_noise=None):
        twos = torch.full(hidden.shape[:-1], 2)
        ones = torch.ones_like(twos)
        counted = ones if self.forget_probs else twos
        probs = torch.nn.functional.one_hot(counted - 1, 4).to(hidden)
        return ReusePlan(twos, probs, lam=torch.zeros_like(probs[..., 0]))


def test_another_controller_can_take_the_place():
    layer, hidden = make_layer().eval(), make_hidden(5, 16)
    layer.controller = AlwaysTwice()
    expected = hidden
    for _ in range(2):
        expected = expected + layer.mlp(layer.norm(expected))
    torch.testing.assert_close(layer(hidden).hidden, expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden).hidden, expected)


def test_another_controllers_mistake_is_found():
    layer = make_layer().eval()
    layer.controller = AlwaysTwice(forget_probs=True)
    with pytest.raises(ValueError, match="one-hot at loop_count"):
        layer(make_hidden(5, 16))
