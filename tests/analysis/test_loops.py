"""Loop statistics against the plans they summarize."""

import pytest
import torch
from transformers import LlamaConfig

from versatileffn.analysis.loops import LayerUse, layer_use, mean_loops, share_below_max
from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaForCausalLM

LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=50,
    initializer_range=0.3,
)


def build(ffn: FFNConfig) -> VersatileLlamaForCausalLM:
    torch.manual_seed(0)
    return VersatileLlamaForCausalLM(VersatileLlamaConfig.from_ffn(LLAMA, ffn)).eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return [torch.randint(0, 50, (2, 17)), torch.randint(0, 50, (1, 5))]


def test_statistics_are_the_plans_averages(batches: list[torch.Tensor]) -> None:
    model = build(FFNConfig(num_experts=4))
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


def test_moe_has_expert_load_but_no_loops(batches: list[torch.Tensor]) -> None:
    layers = layer_use(build(FFNConfig(variant="moe", num_experts=4)), batches)
    assert len(layers) == 2
    for layer in layers:
        assert layer.mean_loops is None
        assert layer.expert_load is not None
        assert sum(layer.expert_load) == pytest.approx(1)
    assert mean_loops(layers) is None
    assert share_below_max(layers) is None


def test_depth_only_has_loops_but_no_experts(batches: list[torch.Tensor]) -> None:
    for layer in layer_use(build(FFNConfig(fusion="depth")), batches):
        assert layer.expert_load is None
        assert layer.mean_lam == 0
        assert layer.loop_share is not None


def test_fixed_variants_decide_nothing(batches: list[torch.Tensor]) -> None:
    assert layer_use(build(FFNConfig(variant="k-loop")), batches) == []
    assert mean_loops([]) is None


def test_means_over_layers() -> None:
    layers = [
        LayerUse(1.0, (1.0, 0.0, 0.0, 0.0), 0.75, None),
        LayerUse(4.0, (0.0, 0.0, 0.0, 1.0), 0.0, None),
    ]
    assert mean_loops(layers) == 2.5
    assert share_below_max(layers) == 0.5


def test_no_tokens_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one window"):
        layer_use(build(FFNConfig()), [])
