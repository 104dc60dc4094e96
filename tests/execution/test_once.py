"""One loop for every token: what the shortcut computes, when it is taken, what it dispatches."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from support.layers import (
    FORMS,
    PLANS,
    as_naive,
    make_any,
    make_hidden,
    make_layer,
    relative_error,
    view_of,
)
from support.models import SHAPE, VARIANTS, make_ids, make_model
from versatileffn.execution import native
from versatileffn.execution.select import execution_choices, forget_choices
from versatileffn.ffn import naive
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.one_loop import OneLoop, share_of_one_loop
from versatileffn.ffn.plan import width_share

OPERATORS = 10
"""What a layer dispatches beyond the dense model's: λ·s·g takes the router, top-k, softmax and two
products; that on the neurons a tensor, a scatter, two views and a product."""
ONE = {
    name: config
    for name, config in PLANS.items()
    if "token-choice" not in name and "scaled" not in name
} | {
    "one-expert": Versatile(top_k=1, reuse_gains="learned"),
    "gaps": Versatile(num_experts=3, d_expert=5),
    "normed": Versatile(normed_controller=True),
    "one-loop": Versatile(max_loops=1, fusion="average"),
}  # fmt: skip


class Dispatched(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def new_record(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: None)  # `test_native.py` has the kernel
    forget_choices()


def took_shortcut():
    names = {choice["executor"] for choice in execution_choices()}
    forget_choices()
    return "once" in names


def capped(form, config, **options):
    layer = make_any(form, config, gains_at=0.4, **options).eval()
    layer.set_budget(1)
    return layer


def update(layer, hidden):
    with torch.no_grad():
        return layer.update(hidden, view_of(layer))


def truth(layer, hidden):
    weights = as_naive(layer)
    weights.budget = 1
    with torch.no_grad():
        return naive.infer(weights, hidden)[0]


@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 9, 16)], ids=str)
@pytest.mark.parametrize("name", ONE)
def test_any_leading_shape_is_the_same(name, shape):
    layer, hidden = capped("swiglu", ONE[name]), make_hidden(*shape)
    found = update(layer, hidden)
    assert took_shortcut()
    torch.testing.assert_close(found, update(layer, hidden.flatten(0, 1)).view(shape))


@pytest.mark.parametrize("form", [form for form in FORMS if not FORMS[form].post_norm])
@pytest.mark.parametrize("name", ONE)
def test_it_is_the_paper_with_one_loop(form, name):
    layer, hidden = capped(form, ONE[name]), make_hidden(7, 16)
    found = hidden + layer.form.scale * update(layer, hidden)
    assert took_shortcut()
    torch.testing.assert_close(found, truth(layer, hidden), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wrong", ["rest", "routed_MK", "experts_MK"])
def test_a_wrong_weight_is_found(wrong, monkeypatch):
    """The control: another share, gate or expert is far outside the tolerance."""
    layer, hidden = capped("swiglu", PLANS["paper"]), make_hidden(7, 16)
    honest = layer.controller.one_loop

    def spoilt(*given):
        right = honest(*given)
        other = {"rest": 0.5, "routed_MK": right.routed_MK * 0.9,
                 "experts_MK": (right.experts_MK + 1) % 8}  # fmt: skip
        return right._replace(**{wrong: other[wrong]})

    monkeypatch.setattr(layer.controller, "one_loop", spoilt)
    assert relative_error(hidden + update(layer, hidden), truth(layer, hidden)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["paper", "learned", "k-loop"])
def test_asking_for_plans_changes_nothing_but_rounding(name, dtype):
    layer, hidden = capped("swiglu", PLANS[name], dtype=dtype), make_hidden(2, 9, 16, dtype=dtype)
    layer.controller.float()
    if layer.gains is not None:
        layer.gains.float()
    with torch.no_grad():
        asked, plan = layer.reuse(hidden, view_of(layer))
        assert not took_shortcut()
        assert plan.loop_count.eq(1).all()
        found = layer.update(hidden, view_of(layer))
    assert took_shortcut()
    limit = 1e-6 if dtype == torch.float32 else 1e-2
    assert relative_error(found, asked) <= limit


@pytest.mark.parametrize("fusion", ["difficulty", "average", "width", "depth"])
@pytest.mark.parametrize("max_loops", [1, 2, 3, 7])
def test_lambda_is_the_plans(fusion, max_loops):
    first = torch.eye(max_loops, dtype=torch.float64)[:1]
    assert width_share(fusion, first).item() == share_of_one_loop(fusion, max_loops)


def test_activations_that_somebody_keeps_are_left_alone():
    kept = []
    layer, hidden = capped("plain-biases", PLANS["paper"]), make_hidden(7, 16)
    view = view_of(layer)._replace(act=nn.GELU())
    for module in (*layer.proj, view.act, layer.down):
        module.register_forward_hook(lambda _, given, out: kept.append((out, out.clone())))
    with torch.no_grad():
        layer.update(hidden, view)
    assert took_shortcut()
    assert len(kept) == 3
    assert all(torch.equal(now, then) for now, then in kept)


def watched(layer):
    layer.controller.register_forward_hook(lambda *_: None)


def watched_predictor(layer):
    layer.controller.loop_head.register_forward_hook(lambda *_: None)


def other_controller(layer):
    layer.controller.__class__ = type("Mine", (type(layer.controller),), {})


REFUSED = {
    "a hook on the controller": watched,
    "a hook on the loop predictor": watched_predictor,
    "somebody's own controller": other_controller,
    "training mode": nn.Module.train,
    "two loops": lambda layer: layer.set_budget(2),
    "no budget": lambda layer: layer.set_budget(None),
    "a budget by sequence": lambda layer: layer.set_budget(torch.ones(3, dtype=torch.int64)),
    "masked": lambda layer: setattr(layer, "execution", "masked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_who_wants_more_gets_a_plan(name):
    layer, hidden = capped("swiglu", PLANS["paper"]), make_hidden(3, 16)
    REFUSED[name](layer)
    update(layer, hidden)
    assert not took_shortcut()


@pytest.mark.parametrize("form", ["post-norm", "sandwich"])
def test_a_norm_after_the_ffn_keeps_its_own_way(form):
    layer, hidden = capped(form, PLANS["learned"]), make_hidden(7, 16)
    found = hidden + layer.form.scale * update(layer, hidden)
    assert not took_shortcut()
    torch.testing.assert_close(found, truth(layer, hidden), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["scaled", "k-loop-scaled"])
def test_a_first_loop_that_adds_less_keeps_its_own_way(name):
    layer, hidden = capped("swiglu", PLANS[name]), make_hidden(7, 16)
    found = hidden + update(layer, hidden)
    assert not took_shortcut()
    torch.testing.assert_close(found, truth(layer, hidden), rtol=1e-10, atol=1e-10)


def test_gradients_come_from_a_plan():
    layer, hidden = capped("swiglu", PLANS["learned"]), make_hidden(7, 16)
    parameters = [p for p in layer.parameters() if p is not layer.controller.loop_head.weight]
    found = torch.autograd.grad(layer(hidden).square().sum(), parameters, allow_unused=True)
    weights = as_naive(layer)
    weights.budget = 1
    expected = torch.autograd.grad(
        naive.infer(weights, hidden)[0].square().sum(), parameters, allow_unused=True
    )
    assert not took_shortcut()
    for mine, wanted in zip(found, expected, strict=True):
        wanted = torch.zeros_like(mine) if wanted is None else wanted
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-8)


def dispatched(model, ids):
    """What one decoded token dispatches."""
    with torch.inference_mode():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        with Dispatched() as seen:
            model(ids[:, -1:], past_key_values=cache, use_cache=True)
    return seen.count


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "moe"])
def test_a_decoded_token_dispatches_little_more_than_dense(name):
    """No clock: the number of operators, which decides at one token."""
    model, ids = make_model(**VARIANTS[name]), make_ids(1, 5)
    dense = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()  # Transformers' own
    free, plain = dispatched(model, ids).total(), dispatched(dense, ids).total()
    layers = len(model.reuse_layers())
    if name != "dense":
        model.set_compute_budget(1)
    found = dispatched(model, ids)
    extra = OPERATORS if name == "versatile-learned" else OPERATORS - 1
    assert found.total() - plain == (extra * layers if "versatile" in name else 0)
    if name != "dense":  # the control: without the budget
        assert free - plain > 2 * layers * OPERATORS
    linears = found["aten.linear.default"] - dispatched(dense, ids)["aten.linear.default"]
    assert linears == (layers if "versatile" in name else 0)  # the router alone


def test_one_loop_without_experts_weighs_nothing():
    a = make_hidden(3, 8)
    assert OneLoop().weigh(a) is a
    torch.testing.assert_close(OneLoop(0.5).weigh(a.clone()), 0.5 * a)


def test_a_layer_alone_tells_its_plan():
    """`VersatileFFN` returns what was decided, so it always has one."""
    layer = make_layer().eval()
    layer.set_budget(1)
    with torch.no_grad():
        assert layer(make_hidden(4, 16)).plan.loop_logits is not None
    assert not took_shortcut()
