"""The held-out loss: which tokens count, and that measuring changes nothing."""

import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.data.tokenizers import load_tokenizer
from versatileffn.errors import ConfigError
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.ffn.config import Versatile
from versatileffn.models.family import VersatileLlamaForCausalLM, reuse_config

LLAMA = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=280
)


# Bytes per token differ: indented code, words, digits.
TEXTS = ["if x:\n" + "        y = x\n" * 12, "the rain in spain " * 7, "8301754926 " * 4]


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> PackedDataset:
    """Documents of unequal length and bytes per token, as windows of twelve tokens."""
    folder = tmp_path_factory.mktemp("held-out")
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    tokenize_corpus(folder / "corpus.jsonl", folder / "tokens", vocab_size=280, val_fraction=0)
    return PackedDataset(folder / "tokens", "train", seq_len=12)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return LlamaForCausalLM(LLAMA)


def ids_of(windows: PackedDataset) -> torch.Tensor:
    return torch.stack([windows[index]["input_ids"] for index in range(len(windows))])


def by_hand(model, ids: torch.Tensor) -> torch.Tensor:
    """Nats of every predicted token, one row for each window."""
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits.double()
    return cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")


@pytest.mark.parametrize("batch_size", [1, 3, 8])  # 3 leaves an incomplete last batch
def test_every_predicted_token_has_the_same_weight(model, windows, batch_size):
    result = held_out_loss(model, windows, batch_size=batch_size)
    nats = by_hand(model, ids_of(windows))
    assert result.nats_per_token == pytest.approx(nats.mean().item(), rel=1e-6)
    assert result.tokens == len(windows) * 11


@pytest.mark.parametrize("chosen", [None, range(2), [6, 8]])
def test_bits_per_byte_divides_by_the_bytes_of_the_scored_tokens(model, windows, chosen):
    result = held_out_loss(model, windows, windows=chosen)
    ids = ids_of(windows)[list(range(len(windows)) if chosen is None else chosen)]
    tokenizer = load_tokenizer(windows.folder)
    size = sum(len(tokenizer.decode(row[1:], skip_special_tokens=True)) for row in ids)
    bits = by_hand(model, ids).sum().item() / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / size, rel=1e-6)
    mean = windows.size.bytes / windows.num_tokens  # what the whole split has is something else
    assert result.bits_per_byte != pytest.approx(bits / (mean * result.tokens), rel=0.005)


def test_documents_share_the_loss_among_them(model, windows):
    result = held_out_loss(model, windows)
    ids = ids_of(windows)
    nats = by_hand(model, ids)
    ends = (ids == windows.meta.eos_token_id).flatten().long()
    document = (ends.cumsum(0) - ends).view_as(ids)[:, 1:]
    assert len(result.documents) == 3
    for number, part in enumerate(result.documents):
        mine = nats[document == number]
        assert part.tokens == len(mine)
        assert part.nats == pytest.approx(mine.sum().item(), rel=1e-6)


def test_only_the_windows_that_are_asked_for(model, windows):
    result = held_out_loss(model, windows, batch_size=2, windows=[4, 0, 7])
    assert result.tokens == 3 * 11
    nats = by_hand(model, ids_of(windows)[[4, 0, 7]])
    assert result.nats_per_token == pytest.approx(nats.mean().item(), rel=1e-6)
    with pytest.raises(ConfigError, match="at least one window"):
        held_out_loss(model, windows, windows=[])


def test_measuring_restores_modes_and_randomness(model, windows):
    model.train()
    model.model.layers[0].eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    held_out_loss(model, windows)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training
    assert all(p.grad is None for p in model.parameters())


def test_a_reuse_model_is_measured_without_noise_or_balance_loss(windows):
    config = reuse_config(LLAMA, Versatile(num_experts=4, router_aux_loss_coef=100.0))
    torch.manual_seed(2)
    model = VersatileLlamaForCausalLM(config).train()
    one, two = held_out_loss(model, windows), held_out_loss(model, windows)
    assert one == two
    assert one.nats_per_token == pytest.approx(
        by_hand(model, ids_of(windows)).mean().item(), rel=1e-5
    )


def test_bf16_is_close(model, windows):
    exact, rounded = held_out_loss(model, windows), held_out_loss(model, windows, bf16=True)
    assert rounded.nats_per_token == pytest.approx(exact.nats_per_token, abs=0.02)
    assert rounded != exact
