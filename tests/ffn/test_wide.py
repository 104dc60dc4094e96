"""Routers and loop predictors compute in float32, whatever surrounds them."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from support.layers import make_hidden, make_layer
from support.models import VARIANTS, make_ids, make_model
from versatileffn.ffn.config import MoE
from versatileffn.ffn.wide import WideLinear

TOKENS = 8192


def ties(logits):
    """Share of tokens whose two largest logits are equal to the bit."""
    largest = logits.topk(2, dim=-1).values
    return (largest[..., 0] == largest[..., 1]).float().mean().item()


@pytest.fixture(scope="module")
def wide_hidden():
    return make_hidden(TOKENS, 1024, dtype=torch.float32)


def test_autocast_leaves_no_ties(wide_hidden):
    layer = make_layer(1024, 64, dtype=torch.float32).eval()
    controller = layer.controller
    with torch.no_grad():
        exact = controller(wide_hidden)
        with torch.autocast("cpu", torch.bfloat16):
            plan = controller(wide_hidden)
            narrow = torch.nn.functional.linear(wide_hidden, controller.router.weight)
    assert ties(narrow) > 1e-3, "the control: products in bfloat16 do tie"
    assert ties(plan.router_logits) == ties(plan.loop_logits) == 0
    for name in ("router_logits", "loop_logits", "gates", "lam"):
        assert torch.equal(getattr(plan, name), getattr(exact, name))
    assert torch.equal(plan.loop_count, exact.loop_count)
    assert torch.equal(plan.experts, exact.experts)


def test_half_precision_weights_leave_no_ties(wide_hidden):
    """A whole model in bfloat16: its weights are rounded, its sums are not."""
    layer = make_layer(1024, 64, dtype=torch.bfloat16).eval()
    hidden = wide_hidden.bfloat16()
    with torch.no_grad():
        plan = layer.controller(hidden)
        narrow = torch.nn.functional.linear(hidden, layer.controller.router.weight)
        exact = layer.float().controller(hidden.float())
    assert ties(narrow) > 1e-3
    assert ties(plan.router_logits) == ties(plan.loop_logits) == 0
    assert torch.equal(plan.router_logits, exact.router_logits)
    assert torch.equal(plan.loop_logits, exact.loop_logits)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_real_experts_are_chosen_in_float32(compiled):
    layer = make_layer(64, 64, dtype=torch.float32, config=MoE())
    x = make_hidden(400, 64, dtype=torch.float32)
    router = layer.experts.router
    if compiled:
        torch._dynamo.reset()
        router = torch.compile(router, fullgraph=True, backend="eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = router(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x @ layer.experts.router.weight.T, rtol=1e-5, atol=1e-6)


def test_gradients_reach_half_precision_weights():
    linear = WideLinear(16, 4).to(torch.bfloat16)
    x = make_hidden(5, 16, dtype=torch.bfloat16).requires_grad_()
    linear(x).sum().backward()
    assert linear.weight.grad.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        linear.weight.grad[0].float(), x.detach().float().sum(0).bfloat16().float()
    )


def test_shapes_can_be_computed_without_data():
    layer = make_layer().to("meta").eval()
    assert layer(torch.empty(3, 16, dtype=torch.float64, device="meta")).hidden.shape == (3, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["versatile-learned", "moe", "k-loop-learned"])
def test_loading_in_half_precision_keeps_what_decides_in_float32(name, dtype, tmp_path):
    model, ids = make_model(**VARIANTS[name]), make_ids(2, 9)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    wide = {n for n, p in loaded.named_parameters() if p.dtype == torch.float32}
    assert wide == {
        n
        for n, _ in model.named_parameters()
        if ".controller." in n or "router" in n or "gain" in n
    }
    assert wide
    assert {p.dtype for n, p in loaded.named_parameters() if n not in wide} == {dtype}
    assert loaded(ids).logits.isfinite().all()
    loaded.train()(input_ids=ids, labels=ids).loss.backward()
