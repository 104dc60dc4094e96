"""Measured activation memory against what autograd's graph itself holds."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from versatileffn.analysis.activations import ffn_activation_bytes, run_ffn, saved_for_backward
from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
from versatileffn.models.family import model_class, reuse_config

FORMS = {
    "dense": (Dense(), "auto"),
    "3-loop": (KLoop(num_loops=3), "auto"),
    "moe": (MoE(num_experts=4), "auto"),
    "masked": (Versatile(), "masked"),
    "states only": (Versatile(), "recompute"),
    "packed": (Versatile(), "packed"),
    "packed learned": (Versatile(reuse_gains="learned"), "packed"),
    "soft": (Versatile(loop_mix="soft"), "auto"),
    "token choice": (Versatile(controller="token-choice", fusion="depth"), "packed"),
}


def config(form: str, d_model: int = 32, d_hidden: int = 96, layers: int = 3):
    llama = LlamaConfig(
        hidden_size=d_model,
        intermediate_size=d_hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=8,
    )
    return reuse_config(llama, FORMS[form][0])


def measured(form: str, *sizes: int, bf16: bool = False, mean_loops: float | None = None) -> float:
    return ffn_activation_bytes(config(form, *sizes), bf16, mean_loops, FORMS[form][1])


def held_by_graph(output: Tensor, parameters: set[int]) -> int:
    """Bytes of all storages that the nodes behind `output` name, without hooks."""
    storages, seen, waiting = {}, set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [after for after, _ in node.next_functions]
        held = list(getattr(node, "saved_tensors", ()))
        for name in dir(node):
            if name.startswith("_saved_"):
                value = getattr(node, name)
                held += value if isinstance(value, list | tuple) else [value]
        for tensor in held:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in parameters:
                storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("loops", [1, 3, 4])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_holds_what_is_reported(form: str, bf16: bool, loops: int) -> None:
    """On a layer with ordinary weights and other numbers of tokens, and without hooks."""
    made = config(form)
    torch.manual_seed(1)
    model = model_class(made)(made).train()
    model.set_execution(FORMS[form][1])
    layer = model.reuse_layers()[0]
    own = {parameter.untyped_storage()._cdata for parameter in layer.parameters()}

    def held(tokens: int) -> int:
        torch.manual_seed(2)
        hidden = torch.randn(1, tokens, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return held_by_graph(run_ffn(layer, hidden, loops), own)

    per_token = (held(80) - held(48)) / 32
    assert measured(form, bf16=bf16, mean_loops=loops) == 3 * per_token


def test_a_dense_ffn_keeps_what_its_products_read() -> None:
    """float32: H, its normed value before and after the weight, 1/rms, gate, up, φ(gate), a."""
    assert measured("dense") == 3 * 4 * (3 * 32 + 1 + 4 * 96)


def test_loops_multiply_and_packing_saves() -> None:
    dense, three, masked, states = (
        measured(form) for form in ("dense", "3-loop", "masked", "states only")
    )
    one, two, two_and_a_half, three_packed, four = (
        measured("packed", mean_loops=loops) for loops in (1, 2, 2.5, 3, 4)
    )
    assert three == 3 * dense
    assert masked > 4 * dense  # L = 4 loops, and the blend
    assert states < one < two < two_and_a_half < three_packed < four < 0.75 * masked
    assert two_and_a_half == (two + three_packed) / 2
    assert measured("dense", bf16=True) < 0.7 * dense


@pytest.mark.parametrize("form", ["dense", "packed", "masked"])
def test_a_plain_number_of_bytes_per_width(form: str) -> None:
    """a·D + b·F + c: what two sizes say about a third."""
    base = measured(form, 32, 96)
    per_d, per_f = measured(form, 64, 96) - base, measured(form, 32, 192) - base
    assert measured(form, 96, 384) == base + 2 * per_d + 3 * per_f


class TwoProducts(nn.Module):
    """Small enough to count by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(12, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        wide = self.up(hidden)
        return self.down(wide[..., :12])  # keeps a view, and with it all of its storage


def test_storages_count_whole_and_once() -> None:
    hidden = torch.randn(1, 5, 8, requires_grad=True)
    two = TwoProducts()
    kept = saved_for_backward(lambda: two(hidden), two.parameters())
    assert kept.bytes == 5 * 4 * (8 + 24)


def test_measuring_moves_no_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measured("masked")
    assert torch.equal(torch.rand(2), expected)
