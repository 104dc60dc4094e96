"""The released schedule, as written for comparison, computes what Algorithms 1 and 2 say."""

import pytest
import torch

from benchmarks.setup import relative_error
from benchmarks.straightforward import run_straightforward
from support.layers import as_naive, gumbel, make_hidden, make_layer
from versatileffn.analysis.executed import FlopCounter
from versatileffn.ffn import naive

VARIANTS = {
    "paper": {},
    "average": {"fusion": "average"},
    "depth": {"fusion": "depth"},
    "one-expert-per-token": {"top_k": 1},
    "fractional-stride": {"num_experts": 5, "d_expert": 6},
    "plain-activation": {"gated": False, "activation": "gelu"},
    "one-loop": {"max_loops": 1},
}
EXACT = 1e-10

pytestmark = pytest.mark.filterwarnings("ignore:.*belong to no expert.*:UserWarning")


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_training_equals_algorithm_1_in_outputs_and_gradients(settings):
    layer = make_layer(**settings)
    layer.controller.tau = 0.7
    hidden = make_hidden(9, 16).requires_grad_()
    noise = gumbel(hidden, layer.config.max_loops)
    plan = layer.controller(hidden, gumbel_noise=noise)
    ours = run_straightforward(hidden, layer.mlp.view(layer.norm), plan)
    truth = naive.train(as_naive(layer), hidden, noise)
    assert relative_error(ours, truth) <= EXACT
    projection = make_hidden(9, 16, seed=9)
    inputs = [hidden, *layer.parameters()]
    pairs = zip(
        *(
            torch.autograd.grad((output * projection).sum(), inputs, allow_unused=True)
            for output in (ours, truth)
        ),
        strict=True,
    )
    for mine, wanted in pairs:
        # With one loop p is constant, and nothing reaches the loop predictor on either side.
        mine, wanted = (torch.zeros(1) if g is None else g for g in (mine, wanted))
        assert relative_error(mine, wanted) <= EXACT or mine.norm() == wanted.norm() == 0


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_inference_equals_algorithm_2(settings):
    layer, hidden = make_layer(**settings).eval(), make_hidden(17, 16)
    with torch.no_grad():
        ours = run_straightforward(hidden, layer.mlp.view(layer.norm), layer.controller(hidden))
        truth, loops = naive.infer(as_naive(layer), hidden)
    assert relative_error(ours, truth) <= EXACT
    if settings == {}:
        assert {1, 4} <= set(loops)  # tokens with and without a width pathway were among them


def test_every_token_runs_to_the_batch_maximum_and_experts_are_multiplied():
    """Its FLOPs are the released schedule's: largest count for all, K·f of F neurons on top."""
    layer, hidden = make_layer().eval(), make_hidden(50, 16)
    with torch.no_grad():
        plan = layer.controller(hidden)
        with FlopCounter() as counter:
            run_straightforward(hidden, layer.mlp.view(layer.norm), plan)
    unit = 6 * 16 * 32
    below = int((plan.loop_count < 4).sum())
    assert plan.loop_count.max() == 4
    assert counter.total == unit * (50 * 4 + below * 2 / 8)


@pytest.mark.parametrize("settings", [{"reuse_gains": "learned"}, {"bias": True}], ids=str)
def test_what_the_release_lacks_is_refused(settings):
    layer, hidden = make_layer(**settings), make_hidden(4, 16)
    with pytest.raises(ValueError, match="the released schedule knows no"):
        run_straightforward(
            hidden, layer.mlp.view(layer.norm), layer.decide(hidden, layer.mlp.view(layer.norm))
        )
