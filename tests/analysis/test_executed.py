"""Counted FLOPs of real forward passes against plans and formulas."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
)

from versatileffn.analysis.executed import executed_ffn_flops, grouped_mm_flops
from versatileffn.analysis.flops import model_cost
from versatileffn.errors import ConfigError
from versatileffn.evaluation.loops import layer_use, mean_loops, share_below_max
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
from versatileffn.models.family import model_class, reuse_config

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


def build(ffn: FFNConfig, dense: PreTrainedConfig = LLAMA) -> Any:
    torch.manual_seed(0)
    config = reuse_config(dense, ffn)
    return model_class(config)(config).eval()


@pytest.mark.parametrize("gains", ["fixed", "learned"])
@pytest.mark.parametrize("fusion", ["difficulty", "average", "depth"])
def test_packed_execution_does_exactly_the_planned_loops(
    batches: list[torch.Tensor], fusion: str, gains: str
) -> None:
    model = build(Versatile(fusion=fusion, reuse_gains=gains))  # type: ignore[arg-type]
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
    cost = model_cost(model.config)
    formula = cost.ffn_flops(loops_mean, share_below_max(layers))
    assert counted.ffn_per_token == pytest.approx(formula, rel=1e-12)
    assert counted.controller_per_token == cost.controller
    assert counted.tokens == 39


def test_masked_execution_is_seen_to_run_every_loop(batches: list[torch.Tensor]) -> None:
    model = build(Versatile())
    model.set_execution("masked")
    layers = layer_use(model, batches)
    counted = executed_ffn_flops(model, batches)
    assert counted.ffn_per_token >= 4 * 3 * ONE_FFN
    assert counted.ffn_per_token > model_cost(model.config).ffn_flops(mean_loops(layers))


@pytest.mark.parametrize(
    "ffn",
    [
        Dense(),
        KLoop(num_loops=3),
        KLoop(num_loops=3, loop_rank=2),
        MoE(),
        MoE(num_experts=4, top_k=3),
        Versatile(fusion="width"),
        Versatile(fusion="width", loop_rank=2),
    ],
    ids=str,
)
def test_other_variants_execute_their_formula(batches: list[torch.Tensor], ffn: FFNConfig) -> None:
    model = build(ffn)
    counted, cost = executed_ffn_flops(model, batches), model_cost(model.config)
    assert counted.ffn_per_token == pytest.approx(cost.ffn_flops(), rel=1e-12)
    assert counted.controller_per_token == cost.controller


FAMILIES = {
    "post-norm": Olmo2Config,  # the width pathway pays a down-projection of its own
    "pre- and post-norm": Gemma2Config,
    "fused gate and up": Phi3Config,
    "beside attention": GPTNeoXConfig,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_execute_what_is_counted_without_memory(
    batches: list[torch.Tensor], family: str
) -> None:
    sizes = {name: getattr(LLAMA, name) for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "vocab_size", "initializer_range",
    )}  # fmt: skip
    dense = FAMILIES[family](**sizes, pad_token_id=0)
    by_loop = [] if family == "beside attention" else [Versatile(loop_rank=2)]
    for ffn in (KLoop(num_loops=2), Versatile(), *by_loop):  # W_out's bias would be all tokens'
        model = build(ffn, dense)
        layers, cost = layer_use(model, batches), model_cost(model.config)
        formula = cost.ffn_flops(mean_loops(layers), share_below_max(layers))
        counted = executed_ffn_flops(model, batches)
        assert counted.ffn_per_token == pytest.approx(formula, rel=1e-12)
        assert counted.controller_per_token == cost.controller
        assert (cost.width_down > 0) == (
            isinstance(ffn, Versatile) and ("post-norm" in family or ffn.loop_rank is not None)
        )


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
    model = build(Versatile()).train()
    executed_ffn_flops(model, batches)
    assert model.training


def test_no_tokens_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one window"):
        executed_ffn_flops(build(Versatile()), [])


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
    model = build(Versatile())
    model.model.layers[1].mlp.up_proj = wrong(32, 96, bias=False)
    with pytest.raises(ConfigError, match=f"the FFNs ran {name}, whose FLOPs"):
        executed_ffn_flops(model, batches)
    attending = build(Versatile())
    attending.model.layers[1].self_attn.o_proj = wrong(32, 32, bias=False)
    assert executed_ffn_flops(attending, batches).ffn_per_token > 0


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_model_is_counted(batches: list[torch.Tensor], how: str) -> None:
    model = build(Versatile())
    expected = executed_ffn_flops(model, batches)
    if how == "wrapped":
        compiled = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
        compiled = model
    assert executed_ffn_flops(compiled, batches) == expected
