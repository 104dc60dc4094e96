"""What holds for every configuration and every input."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.layers import as_naive, make_hidden, make_layer
from versatileffn.ffn import naive
from versatileffn.ffn.config import Dense, Versatile
from versatileffn.ffn.experts import ExpertSlices
from versatileffn.layer import VersatileFFN

pytestmark = pytest.mark.filterwarnings("ignore:.*belong to no expert.*:UserWarning")
few = settings(max_examples=40, deadline=None)


@st.composite
def slices(draw):
    num_experts = draw(st.integers(1, 12))
    d_expert = draw(st.integers(1, 20))
    return ExpertSlices(num_experts, d_expert, num_experts * d_expert + draw(st.integers(0, 30)))


@given(slices())
def test_expert_slices_are_disjoint_and_inside(slices):
    neurons = [j for start in slices.starts for j in range(start, start + slices.d_expert)]
    assert len(set(neurons)) == len(neurons) == slices.num_experts * slices.d_expert
    assert min(neurons) == 0
    assert max(neurons) < slices.d_hidden


@given(slices())
def test_slices_follow_equations_4_and_5(slices):
    n, f, d_hidden = slices.num_experts, slices.d_expert, slices.d_hidden
    owner = slices.owner_of_neuron()
    for k in range(n):
        assert (owner == k).nonzero().flatten().tolist() == naive.expert_neurons(k, n, f, d_hidden)
    assert (owner == n).sum().item() == d_hidden - n * f


@st.composite
def layers(draw):
    num_experts = draw(st.integers(1, 6))
    d_expert = draw(st.integers(1, 5))
    fields = {
        "num_experts": num_experts,
        "d_expert": d_expert,
        "top_k": draw(st.integers(1, num_experts)),
        "max_loops": draw(st.integers(1, 5)),
        "fusion": draw(st.sampled_from(["difficulty", "average", "width", "depth"])),
        "reuse_gains": draw(st.sampled_from(["fixed", "learned"])),
        "gated": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 10_000)),
    }
    d_hidden = num_experts * d_expert + draw(st.integers(0, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_layer(d_model=8, d_hidden=d_hidden, **fields).eval()


hiddens = st.builds(lambda m, s: make_hidden(m, 8, seed=s), st.integers(1, 12), st.integers(0, 999))


@few
@given(layers(), hiddens)
def test_any_layer_equals_algorithm_2(layer, hidden):
    with torch.no_grad():
        expected, _ = naive.infer(as_naive(layer), hidden)
        scale = expected.abs().max().clamp_min(1)
        assert (layer(hidden).hidden - expected).abs().max() <= 1e-10 * scale


@few
@given(layers(), hiddens)
def test_gates_sum_to_one_and_lambda_is_below_one(layer, hidden):
    plan = layer.controller(hidden)
    if plan.gates is not None and layer.config.top_k > 1:
        torch.testing.assert_close(plan.gates.sum(-1), torch.ones(len(hidden)).double())
    if plan.gates is not None and layer.config.top_k == 1:
        assert ((plan.gates > 0) & (plan.gates <= 1)).all()
    if layer.config.fusion == "difficulty":
        assert ((plan.lam >= 0) & (plan.lam < 1)).all()
    torch.testing.assert_close(plan.loop_probs.sum(-1), torch.ones(len(hidden)).double())


@few
@given(layers(), hiddens, st.randoms())
def test_permuting_tokens_permutes_outputs(layer, hidden, random):
    order = list(range(len(hidden)))
    random.shuffle(order)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden[order]).hidden, layer(hidden).hidden[order])


@few
@given(layers(), hiddens)
def test_the_shape_of_the_batch_does_not_matter(layer, hidden):
    with torch.no_grad():
        flat = layer(hidden).hidden
        folded = layer(hidden.view(len(hidden), 1, 8)).hidden
    torch.testing.assert_close(folded.view_as(flat), flat)


@few
@given(hiddens, st.integers(0, 999))
def test_one_loop_is_the_dense_ffn(hidden, seed):
    layer = make_layer(d_model=8, d_hidden=16, max_loops=1, seed=seed).eval()
    dense = VersatileFFN(8, 16, Dense()).double()
    dense.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden).hidden, dense(hidden).hidden)


@few
@given(hiddens, st.integers(0, 999))
def test_all_tokens_at_the_last_loop_give_pure_depth(hidden, seed):
    layer = make_layer(d_model=8, d_hidden=16, seed=seed).eval()
    dense = VersatileFFN(8, 16, Dense()).double()
    dense.load_state_dict(layer.state_dict(), strict=False)
    plan = layer.controller(hidden)
    plan = plan.with_loops(torch.full_like(plan.loop_count, 4))
    assert not plan.lam.any()
    expected = hidden
    with torch.no_grad():
        for _ in range(4):
            expected = dense(expected).hidden
        torch.testing.assert_close(layer(hidden, plan).hidden, expected)


@few
@given(layers(), hiddens)
def test_saving_and_loading_changes_nothing(layer, hidden):
    clone = make_layer(
        d_model=8,
        d_hidden=layer.mlp.up_proj.out_features,
        config=layer.config.replace(),
        gated=layer.mlp.gate_proj is not None,
        bias=layer.mlp.up_proj.bias is not None,
        seed=4242,
    ).eval()
    clone.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(clone(hidden).hidden, layer(hidden).hidden)


@few
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 64))
def test_new_parameters_are_d_times_n_plus_l(num_experts, max_loops, d_model):
    config = Versatile(num_experts=num_experts, top_k=1, max_loops=max_loops)
    layer = make_layer(d_model=d_model, d_hidden=num_experts * 2, config=config)
    new = sum(p.numel() for p in layer.controller.parameters())
    assert new == d_model * (num_experts + max_loops)
