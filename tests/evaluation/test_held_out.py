"""The held-out loss: which tokens count, and that measuring changes nothing."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from versatileffn.errors import ConfigError
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.ffn.config import FFNConfig
from versatileffn.models.llama import VersatileLlamaConfig, VersatileLlamaForCausalLM

LLAMA = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
)


class Windows(torch.utils.data.Dataset):
    """Random windows that say how much text a token stands for."""

    bytes_per_token = 2.5

    def __init__(self, count: int = 7, seq_len: int = 12) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 64, (count, seq_len), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


@pytest.fixture
def model():
    torch.manual_seed(1)
    return LlamaForCausalLM(LLAMA)


def by_hand(model, ids: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits.double()
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()


@pytest.mark.parametrize("batch_size", [1, 3, 8])  # 3 leaves an incomplete last batch
def test_every_predicted_token_has_the_same_weight(model, batch_size):
    windows = Windows()
    result = held_out_loss(model, windows, batch_size=batch_size)
    assert result.nats_per_token == pytest.approx(by_hand(model, windows.ids), rel=1e-6)
    assert result.tokens == 7 * 11
    bits = result.nats_per_token / math.log(2) / 2.5
    assert result.bits_per_byte == pytest.approx(bits)


def test_only_the_first_windows_where_limited(model):
    windows = Windows()
    result = held_out_loss(model, windows, batch_size=2, max_windows=3)
    assert result.tokens == 3 * 11
    assert result.nats_per_token == pytest.approx(by_hand(model, windows.ids[:3]), rel=1e-6)
    with pytest.raises(ConfigError, match="at least one window"):
        held_out_loss(model, windows, max_windows=0)


def test_measuring_restores_modes_and_randomness(model):
    model.train()
    model.model.layers[0].eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    held_out_loss(model, Windows())
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training
    assert all(p.grad is None for p in model.parameters())


def test_a_reuse_model_is_measured_without_noise_or_balance_loss():
    config = VersatileLlamaConfig.from_ffn(
        LLAMA, FFNConfig(num_experts=4, router_aux_loss_coef=100.0)
    )
    torch.manual_seed(2)
    model = VersatileLlamaForCausalLM(config).train()
    windows = Windows()
    one, two = held_out_loss(model, windows), held_out_loss(model, windows)
    assert one == two
    assert one.nats_per_token == pytest.approx(by_hand(model, windows.ids), rel=1e-5)


def test_bf16_is_close(model):
    windows = Windows()
    exact, rounded = held_out_loss(model, windows), held_out_loss(model, windows, bf16=True)
    assert rounded.nats_per_token == pytest.approx(exact.nats_per_token, abs=0.02)
    assert rounded != exact
