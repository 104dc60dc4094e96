"""Counted FLOPs of real forward passes against plans and formulas."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from versatileffn.analysis.executed import executed_ffn_flops, grouped_mm_flops
from versatileffn.analysis.flops import controller_flops_per_token, ffn_flops_per_token
from versatileffn.analysis.loops import layer_use, mean_loops, share_below_max
from versatileffn.errors import ConfigError
from versatileffn.ffn.config import FFNConfig
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaForCausalLM

LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    vocab_size=50,
    initializer_range=0.3,  # so that tokens differ in what they decide
)
ONE_FFN = 3 * 32 * 96 * 2  # FLOPs of one application for one token


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return [torch.randint(0, 50, (2, 17)), torch.randint(0, 50, (1, 5))]


def build(ffn: FFNConfig) -> VersatileLlamaForCausalLM:
    torch.manual_seed(0)
    return VersatileLlamaForCausalLM(VersatileLlamaConfig.from_ffn(LLAMA, ffn)).eval()


@pytest.mark.parametrize("gains", ["fixed", "learned"])
@pytest.mark.parametrize("fusion", ["difficulty", "average", "depth"])
def test_packed_execution_does_exactly_the_planned_loops(
    batches: list[torch.Tensor], fusion: str, gains: str
) -> None:
    model = build(FFNConfig(fusion=fusion, reuse_gains=gains))  # type: ignore[arg-type]
    counted = executed_ffn_flops(model, batches)
    with torch.no_grad():
        plans = [model(input_ids=ids, output_reuse_plans=True).reuse_plans for ids in batches]
    for layer in range(3):
        loops = sum(int(plan[layer].loop_count.sum()) for plan in plans)
        assert counted.ffn_per_token_by_layer[layer] == pytest.approx(loops * ONE_FFN / 39)
    layers = layer_use(model, batches)
    loops_mean = mean_loops(layers)
    assert loops_mean is not None
    assert 1 < loops_mean < 4  # else the check would not tell early exit from none
    formula = ffn_flops_per_token(model.config, loops_mean, share_below_max(layers))
    assert counted.ffn_per_token == pytest.approx(formula, rel=1e-12)
    assert counted.controller_per_token == controller_flops_per_token(model.config)
    assert counted.tokens == 39


def test_masked_execution_is_seen_to_run_every_loop(batches: list[torch.Tensor]) -> None:
    model = build(FFNConfig(execution="masked"))
    layers = layer_use(model, batches)
    counted = executed_ffn_flops(model, batches)
    assert counted.ffn_per_token >= 4 * 3 * ONE_FFN
    assert counted.ffn_per_token > ffn_flops_per_token(model.config, mean_loops(layers))


@pytest.mark.parametrize(
    "ffn",
    [
        FFNConfig(variant="dense"),
        FFNConfig(variant="k-loop", num_loops=3),
        FFNConfig(variant="moe"),
        FFNConfig(variant="moe", num_experts=4, top_k=3),
        FFNConfig(fusion="width"),
    ],
    ids=str,
)
def test_other_variants_execute_their_formula(batches: list[torch.Tensor], ffn: FFNConfig) -> None:
    model = build(ffn)
    counted = executed_ffn_flops(model, batches)
    assert counted.ffn_per_token == pytest.approx(ffn_flops_per_token(model.config), rel=1e-12)
    assert counted.controller_per_token == controller_flops_per_token(model.config)


def test_a_plain_llama_can_be_counted(batches: list[torch.Tensor]) -> None:
    counted = executed_ffn_flops(LlamaForCausalLM(LLAMA), batches)
    assert counted.ffn_per_token == 3 * ONE_FFN


def test_grouped_product_formula_counts_each_row_once() -> None:
    """Ours must equal what torch counts for the products that the grouped one stands for."""
    rows, weight = torch.randn(10, 16), torch.randn(3, 16, 24)
    with FlopCounterMode(display=False) as counter:
        torch.cat([rows[:4] @ weight[0], rows[4:5] @ weight[1], rows[5:] @ weight[2]])
    assert grouped_mm_flops(rows.shape, weight.shape) == counter.get_total_flops()


def test_grouped_product_is_counted_when_it_runs() -> None:
    rows = torch.randn(16, 16, dtype=torch.bfloat16)
    weight = torch.randn(2, 16, 32, dtype=torch.bfloat16)
    ends = torch.tensor([8, 16], dtype=torch.int32)
    custom = {torch.ops.aten._grouped_mm: grouped_mm_flops}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        try:
            torch.nn.functional.grouped_mm(rows, weight, offs=ends)
        except (RuntimeError, NotImplementedError):
            pytest.skip("this build of torch has no grouped product on the CPU")
    assert counter.get_total_flops() == 2 * 16 * 16 * 32


def test_counting_leaves_the_training_mode_as_it_was(batches: list[torch.Tensor]) -> None:
    model = build(FFNConfig()).train()
    executed_ffn_flops(model, batches)
    assert model.training


def test_no_tokens_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one window"):
        executed_ffn_flops(build(FFNConfig()), [])


@torch.library.custom_op("versatileffn_test::product", mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.T


class Opaque(torch.nn.Linear):
    """A linear map of somebody's, as quantization makes them: one operator, no formula."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight)


class MatrixVector(torch.nn.Linear):
    """A product that torch's counter passes over."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [torch.mv(self.weight, row) for row in x.reshape(-1, x.shape[-1])]
        return torch.stack(rows).view(*x.shape[:-1], -1)


@pytest.mark.parametrize(
    ("wrong", "name"), [(Opaque, "versatileffn_test.product"), (MatrixVector, "aten.mv")]
)
def test_what_cannot_be_counted_is_refused(
    batches: list[torch.Tensor], wrong: type[torch.nn.Linear], name: str
) -> None:
    model = build(FFNConfig())
    model.model.layers[1].mlp.up_proj = wrong(32, 96, bias=False)
    with pytest.raises(ConfigError, match=f"the FFNs ran {name}, whose FLOPs"):
        executed_ffn_flops(model, batches)
    attending = build(FFNConfig())
    attending.model.layers[1].self_attn.o_proj = wrong(32, 32, bias=False)
    assert executed_ffn_flops(attending, batches).ffn_per_token > 0


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_model_is_counted(batches: list[torch.Tensor], how: str) -> None:
    model = build(FFNConfig())
    expected = executed_ffn_flops(model, batches)
    if how == "wrapped":
        compiled = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
        compiled = model
    assert executed_ffn_flops(compiled, batches) == expected
