"""Models with a budget: in generation, with caches, in compiled graphs, saved and loaded."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, GenerationConfig

import versatileffn as vf
from support.families import tiny_dense
from support.models import VARIANTS, make_ids, make_model
from versatileffn.analysis.executed import executed_ffn_flops
from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.models.family import reuse_config

LOOPING = {
    "paper": {},
    "learned": {"reuse_gains": "learned"},
    "average": {"fusion": "average"},
    "soft": {"loop_mix": "soft"},
    "token-choice": {"fusion": "depth", "controller": "token-choice"},
    "loop-weights": {"loop_rank": 2},
    "k-loop": {"variant": "k-loop", "num_loops": 3},
}
looping = pytest.mark.parametrize("settings", LOOPING.values(), ids=LOOPING)


def loops_of(model, ids, **kwargs):
    """The loops of every token in every layer."""
    plans = model(ids, output_reuse_plans=True, **kwargs).reuse_plans
    return torch.stack([plan.loop_count for plan in plans])


def generate(model, ids, **kwargs):
    return model.generate(ids, max_new_tokens=6, do_sample=False, **kwargs)


@looping
@pytest.mark.parametrize("execution", ["auto", "masked"])
def test_one_loop_costs_what_dense_costs(settings, execution):
    ids = make_ids(2, 16)
    dense = executed_ffn_flops(make_model(variant="dense"), [ids])
    model = make_model(execution=execution, **settings)
    assert executed_ffn_flops(model, [ids]).ffn_per_token > dense.ffn_per_token
    with vf.compute_budget(model, max_loops=1):
        counted = executed_ffn_flops(model, [ids])
    assert counted.ffn_per_token_by_layer == dense.ffn_per_token_by_layer


def test_a_norm_after_the_ffn_wants_one_product_more_for_the_experts():
    """It isn't linear, so the experts' part goes through it, and W_out, on its own; as without a
    budget. Without experts one loop costs what dense costs there, too."""
    dense, ids = tiny_dense("olmo2"), make_ids(2, 16)
    expected = executed_ffn_flops(dense, [ids]).ffn_per_token
    for fusion, share in (("difficulty", 4 / 3), ("depth", 1)):
        config = reuse_config(dense.config, FFNConfig.from_dict({"fusion": fusion}))
        model = AutoModelForCausalLM.from_config(config).eval()
        with vf.compute_budget(model, max_loops=1):
            counted = executed_ffn_flops(model, [ids]).ffn_per_token
        assert counted == pytest.approx(share * expected)


def test_every_family_decodes_by_the_budget(model_type):
    """Step by step with a cache as all at once, masked as packed."""
    config = reuse_config(tiny_dense(model_type).config, FFNConfig.from_dict({}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.set_compute_budget(2)
    ids = make_ids(2, 8)
    with torch.no_grad():
        assert loops_of(model, ids).unique().tolist() == [1, 2]
        whole, cache, steps = model(ids).logits, None, []
        for position in range(8):
            out = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
        torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)
        model.set_execution("masked")
        torch.testing.assert_close(model(ids).logits, whole, rtol=1e-4, atol=1e-4)


@looping
def test_left_padding_and_a_budget_for_each_request(settings):
    model, loops = make_model(**settings), LOOPING["k-loop"].get("num_loops")
    ids, mask = make_ids(3, 8), torch.ones(3, 8, dtype=torch.int64)
    mask[0, :3] = mask[2, :5] = 0
    caps = [1, 2, loops]
    together = generate(model, ids, attention_mask=mask, max_loops=torch.tensor(caps))[:, 8:]
    for row, cap in enumerate(caps):
        alone = generate(model, ids[row : row + 1, mask[row] == 1], max_loops=cap)
        assert torch.equal(alone[0, -6:], together[row])
    assert not torch.equal(together, generate(model, ids, attention_mask=mask)[:, 8:])


def test_beams_have_their_requests_budget():
    model, ids = make_model(), make_ids(2, 7)
    together = generate(model, ids, num_beams=3, max_loops=torch.tensor([1, 3]))
    for row, cap in enumerate((1, 3)):
        alone = generate(model, ids[row : row + 1], num_beams=3, max_loops=cap)
        assert torch.equal(together[row, : alone.shape[1]], alone[0])


def test_a_budget_lasts_as_long_as_its_context():
    model, ids = make_model(), make_ids(2, 9)
    free = loops_of(model, ids)
    assert free.max() == 4
    with vf.compute_budget(model, max_loops=3):
        assert loops_of(model, ids).max() == 3
        with pytest.raises(IndexError), vf.compute_budget(model, max_loops=1):
            loops_of(model, ids + 97)
        assert loops_of(model, ids).max() == 3
        with vf.compute_budget(model):
            assert torch.equal(loops_of(model, ids), free)
    assert torch.equal(loops_of(model, ids), free)
    model.set_compute_budget(2)
    assert loops_of(model, ids).max() == 2
    model.set_compute_budget()
    assert torch.equal(loops_of(model, ids), free)


@looping
def test_no_value_is_compiled_for(settings):
    """One graph without a budget, one for every number, one for every number by sequence."""
    model, ids = make_model(num_hidden_layers=1, **settings), make_ids(2, 9)
    loops = model.reuse_layers()[0].loops
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    budgets = [(1, None), *((2, cap) for cap in range(1, loops + 1)), (2, None)]
    budgets += [(3, torch.tensor([1, 2])), (3, torch.tensor([loops, 1]))]
    with torch.no_grad():
        for graphs, cap in budgets:
            model.set_compute_budget(cap)
            torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
            assert counters["stats"]["unique_graphs"] == graphs


def test_a_budget_is_saved_where_the_user_puts_it(tmp_path):
    """In the generation config; the running model's own is never saved."""
    model, ids = make_model(), make_ids(2, 7)
    expected = [generate(model, ids, max_loops=cap) for cap in (1, 2, 4)]
    assert not torch.equal(expected[0], expected[2])
    model.set_compute_budget(1)
    model.save_pretrained(tmp_path / "state")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "state")
    assert torch.equal(generate(loaded, ids), expected[2])
    loaded.generation_config.max_loops = 2
    loaded.save_pretrained(tmp_path / "asked")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "asked")
    assert torch.equal(generate(loaded, ids), expected[1])
    assert torch.equal(generate(loaded, ids, max_loops=1), expected[0])  # the call's comes first
    given = GenerationConfig(max_new_tokens=6, do_sample=False, max_loops=1, pad_token_id=0)
    assert torch.equal(loaded.generate(ids, given), expected[0])
    assert loaded.reuse_layers()[0].budget is None


def test_a_model_is_loaded_with_a_budget(tmp_path):
    model, ids = make_model(), make_ids(2, 7)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, max_loops=2)
    assert loaded.config.ffn().max_loops == 4
    assert torch.equal(generate(loaded, ids), generate(model, ids, max_loops=2))
    with pytest.raises(ConfigError, match="max_loops=9 is more than the 4 loops"):
        AutoModelForCausalLM.from_pretrained(tmp_path, max_loops=9)


def test_the_config_says_which_call_turns_the_dial():
    config = make_model().config
    with pytest.raises(ConfigError, match=r"call model.set_compute_budget\(max_loops=1\)"):
        config.max_loops = 1


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_models_that_decide_nothing(name):
    model = make_model(**VARIANTS[name])
    with pytest.raises(ConfigError, match=f"a {name} model decides nothing that could be capped"):
        model.set_compute_budget(1)
    with pytest.raises(ConfigError, match="decides nothing"), vf.compute_budget(model, max_loops=1):
        pass
    with pytest.raises(ConfigError, match="decides nothing"):
        generate(model, make_ids(1, 3), max_loops=1)
    model.set_compute_budget(None)  # nothing asked for, nothing refused


def test_modules_without_reuse():
    with pytest.raises(ConfigError, match=r"Linear has no reused FFN.*versatileffn\.upcycle"):
        vf.compute_budget(torch.nn.Linear(2, 2), max_loops=1).__enter__()


def test_a_layer_of_ones_own_has_a_dial():
    network = torch.nn.Sequential(vf.VersatileFFN(16, 32), torch.nn.Linear(16, 16)).eval()
    hidden = torch.randn(40, 16)
    with vf.compute_budget(network, max_loops=2):
        assert network[0](hidden).plan.loop_count.max() == 2
    assert network[0](hidden).plan.loop_count.max() > 2
