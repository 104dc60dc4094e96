"""A budget in every family and executor: what it costs at one loop, and whom it leaves alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import versatileffn as vf
from support.families import tiny_dense
from support.models import make_ids
from versatileffn.analysis.executed import executed_ffn_flops
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.models.family import reuse_config

KNOBS = {
    "paper": {},
    "learned": {"reuse_gains": "learned"},
    "depth": {"fusion": "depth"},
    "k-loop": {"variant": "k-loop", "num_loops": 4},
}
EXECUTIONS = ["auto", "masked", "recompute"]
executions = pytest.mark.parametrize("execution", EXECUTIONS)
looping = pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)


@pytest.fixture(scope="module")
def dense(model_type):
    return tiny_dense(model_type)


def convert(dense, execution, knobs):
    torch.manual_seed(0)
    config = reuse_config(dense.config, FFNConfig.from_dict(knobs))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gain" in name:
                parameter.fill_(0.5)
    model.set_execution(execution)
    return model


@executions
@looping
def test_one_loop_costs_what_dense_costs(dense, execution, knobs):
    """But for virtual experts before a norm that isn't linear, which want a W_out of their own."""
    model, ids = convert(dense, execution, knobs), make_ids(2, 16)
    view = model.reuse_layers()[0].ffn_view()
    apart = view.post_norm is not None and knobs in (KNOBS["paper"], KNOBS["learned"])
    expected = executed_ffn_flops(dense, [ids]).ffn_per_token_by_layer
    products = 3 if view.gated else 2
    share = 1 + apart / products
    with vf.compute_budget(model, max_loops=1):
        counted = executed_ffn_flops(model, [ids]).ffn_per_token_by_layer
    assert counted == pytest.approx([share * each for each in expected])
    assert sum(executed_ffn_flops(model, [ids]).ffn_per_token_by_layer) > sum(counted)


@executions
@pytest.mark.parametrize("knobs", [KNOBS["paper"], KNOBS["learned"]], ids=["paper", "learned"])
def test_a_budget_changes_no_token_that_was_under_it(dense, execution, knobs):
    """The first layer's output of every such token, and the logits of those that read no other: to
    the bit where shapes are static (see tests/execution/test_budget.py)."""
    model, ids = convert(dense, execution, knobs), make_ids(24, 6)
    options = {"use_cache": False, "output_reuse_plans": True, "output_hidden_states": True}
    with torch.no_grad():
        free = model(ids, **options)
        for cap in (2, 3):
            with vf.compute_budget(model, max_loops=cap):
                capped = model(ids, **options)
            under = torch.stack([plan.loop_count <= cap for plan in free.reuse_plans])
            reading = under.all(0).long().cumprod(-1).bool()  # it, and all that it attends to
            near = 0 if execution == "masked" else 1e-4
            for which, found, expected in (
                (under[0], capped.hidden_states[1], free.hidden_states[1]),
                (reading, capped.logits, free.logits),
            ):
                assert which.any()
                assert not which.all()
                torch.testing.assert_close(found[which], expected[which], rtol=near, atol=near)
                over = (found - expected)[~which].abs().amax(-1)
                assert (over > 1e-3).any()
