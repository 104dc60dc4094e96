"""What `observe` yields, and loop statistics against the plans they summarize."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from versatileffn.errors import CheckpointError, ConfigError
from versatileffn.evaluation.loops import (
    LayerTally,
    LayerUse,
    layer_use,
    mean_loops,
    share_below_max,
)
from versatileffn.evaluation.observe import observe, overhear
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
from versatileffn.ffn.moe import Routing
from versatileffn.ffn.plan import ReusePlan
from versatileffn.models.family import model_class, reuse_config

LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=50,
    initializer_range=0.3,
    pad_token_id=0,
)
TOKEN_CHOICE = Versatile(controller="token-choice", fusion="depth")
VARIANTS = [Dense(), KLoop(num_loops=3), MoE(num_experts=4), Versatile(), TOKEN_CHOICE]


def build(ffn: FFNConfig) -> Any:
    torch.manual_seed(0)
    config = reuse_config(LLAMA, ffn)
    return model_class(config)(config).eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(1, 50, (2, 17)), torch.randint(1, 50, (1, 5))]


@pytest.mark.parametrize("ffn", VARIANTS, ids=str)
def test_every_variant_yields_one_decision_for_each_layer(ffn, batches) -> None:
    model = build(ffn).train()
    model.model.layers[1].eval()  # a mixture of modes, to be found again
    for ids, seen in zip(batches, observe(model, iter(batches)), strict=True):
        assert torch.equal(seen.ids_BT, ids)
        assert torch.is_grad_enabled()
        assert model.training
        assert not model.model.layers[1].training
        assert len(seen.decisions) == 2
        for decision in seen.decisions:
            if isinstance(ffn, MoE):
                assert isinstance(decision, Routing)
                assert decision.router_logits.shape == (*ids.shape, 4)
                assert not decision.router_logits.requires_grad
                continue
            assert isinstance(decision, ReusePlan)
            assert decision.loop_count.shape == ids.shape
            assert not decision.loop_probs.requires_grad
            if isinstance(ffn, Dense | KLoop):
                assert decision.uniform == ffn.loops
                assert (decision.loop_count == ffn.loops).all()


def test_what_is_decided_is_what_inference_decides(batches) -> None:
    """No noise, though the model was being trained."""
    model = build(Versatile()).train()
    first, second = (list(observe(model, batches)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for mine, its in zip(one.decisions, other.decisions, strict=True):
            assert torch.equal(mine.loop_count, its.loop_count)
            assert torch.equal(mine.loop_count, mine.loop_logits.argmax(-1) + 1)


def test_a_dense_model_decides_nothing(batches) -> None:
    seen = list(observe(LlamaForCausalLM(LLAMA), batches))
    assert [batch.decisions for batch in seen] == [(), ()]
    assert layer_use(LlamaForCausalLM(LLAMA), batches) == []


@pytest.mark.parametrize("ffn", [Versatile(num_experts=4), MoE(num_experts=4)], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(ffn, side, batches) -> None:
    model = build(ffn)
    alone = layer_use(model, batches)
    padded = []
    for ids in batches:
        pad = torch.zeros(len(ids), 4, dtype=torch.int64)
        parts = (pad, ids) if side == "left" else (ids, pad)
        joined = torch.cat(parts, dim=1)
        padded.append({"input_ids": joined, "attention_mask": (joined != 0).long()})
    for one, other in zip(alone, layer_use(model, padded), strict=True):
        assert one.expert_load == pytest.approx(other.expert_load)
        assert one.loop_share == pytest.approx(other.loop_share)
        assert one.mean_lam == pytest.approx(other.mean_lam)
    blind = layer_use(model, [batch["input_ids"] for batch in padded])
    assert blind[0].expert_load != pytest.approx(alone[0].expert_load)


def test_what_computes_no_numbers_is_refused(batches) -> None:
    model = build(Versatile())
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        list(observe(model, batches))


def test_no_tokens_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one window"):
        layer_use(build(Versatile()), [])


def test_statistics_are_the_plans_averages(batches) -> None:
    model = build(Versatile(num_experts=4))
    layers = layer_use(model, batches)
    with torch.no_grad():
        plans = [model(input_ids=ids, output_reuse_plans=True).reuse_plans for ids in batches]
    for index, layer in enumerate(layers):
        count = torch.cat([plan[index].loop_count.flatten() for plan in plans])
        lam = torch.cat([plan[index].lam.flatten() for plan in plans])
        experts = torch.cat([plan[index].experts.flatten() for plan in plans])
        assert layer.mean_loops == pytest.approx(count.float().mean().item())
        shares = [(count == k).float().mean().item() for k in range(1, 5)]
        assert layer.loop_share == pytest.approx(shares)
        assert layer.mean_lam == pytest.approx(lam.mean().item())
        load = [(experts == k).float().mean().item() for k in range(4)]
        assert layer.expert_load == pytest.approx(load)
        # λ = (L − ℓ)/L for hard loops (Eq. 13)
        assert layer.mean_lam == pytest.approx((4 - layer.mean_loops) / 4)


def test_a_tally_of_batches_is_the_one_of_all_tokens(batches) -> None:
    model = build(Versatile())
    together, apart = LayerTally(), LayerTally()
    (seen,) = observe(model, batches[:1])
    together.add(seen.decisions[0])
    for tokens in (slice(0, 9), slice(9, None)):
        apart.add(seen.decisions[0].flatten().take(tokens))
    assert together.use() == apart.use()


def test_moe_has_expert_load_but_no_loops(batches) -> None:
    layers = layer_use(build(MoE(num_experts=4)), batches)
    assert len(layers) == 2
    for layer in layers:
        assert layer.mean_loops is None
        assert sum(layer.expert_load) == pytest.approx(1)
    assert mean_loops(layers) is None
    assert share_below_max(layers) is None


def test_depth_only_has_loops_but_no_experts(batches) -> None:
    for layer in layer_use(build(Versatile(fusion="depth")), batches):
        assert layer.expert_load is None
        assert layer.mean_lam == 0
        assert layer.loop_share is not None


def test_token_choice_has_loops_and_the_gates_rest(batches) -> None:
    for layer in layer_use(build(TOKEN_CHOICE), batches):
        assert 1 <= layer.mean_loops <= 4
        assert 0 < layer.mean_lam < 1
        assert layer.expert_load is None


@pytest.mark.parametrize("ffn", [Dense(), KLoop(num_loops=3)], ids=str)
def test_constant_plans_are_no_statistics(ffn, batches) -> None:
    assert layer_use(build(ffn), batches) == []
    assert mean_loops([]) is None


def test_means_over_layers() -> None:
    layers = [
        LayerUse(1.0, (1.0, 0.0, 0.0, 0.0), 0.75, None),
        LayerUse(4.0, (0.0, 0.0, 0.0, 1.0), 0.0, None),
    ]
    assert mean_loops(layers) == 2.5
    assert share_below_max(layers) == 0.5


@pytest.mark.parametrize("ffn", VARIANTS, ids=lambda ffn: type(ffn).__name__)
def test_whoever_runs_the_model_is_overheard(ffn):
    """As `observe` sees it, for as long as the block runs, however that ends."""
    model, heard = build(ffn), []
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad(), overhear(model, heard.append):
        model(ids)
    with pytest.raises(TypeError), overhear(model, heard.append):
        model("no tokens")
    model(ids)
    (decisions,) = heard
    (seen,) = observe(model, [ids])
    for one, other in zip(decisions, seen.decisions, strict=True):
        if isinstance(one, ReusePlan):
            assert torch.equal(one.loop_count, other.loop_count)
        else:
            assert torch.equal(one.router_logits, other.router_logits)
