"""Sliding-window perplexity against a direct computation, token by token, in float64."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from support.launch import SOURCE
from versatileffn.cli.perplexity import perplexity_command
from versatileffn.data.default_corpus import read_topics
from versatileffn.data.long_text import LongTextEncoder
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import CheckpointError, ConfigError, DataError, ResourceError
from versatileffn.evaluation.perplexity import (
    TOKENS_AT_ONCE,
    Span,
    batches,
    check_window,
    negative_log_likelihoods,
    perplexity,
    prefix_token,
    windows,
)
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.models.family import VersatileLlamaForCausalLM, reuse_config

VOCAB = 300
LLAMA = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=64,
    initializer_range=0.2,
)
WINDOWS = [(16, 16), (16, 5), (16, 1), (64, 32), (1, 1)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    topics = list(read_topics().values()) or [__doc__ * 20]
    return [topics[0][:150], "Grüße 🎈", topics[-1][:90]]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_bpe(texts, VOCAB)


def build(variant: str, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    if variant == "plain":
        return LlamaForCausalLM(LLAMA).to(dtype).eval()
    config = reuse_config(LLAMA, FFNConfig.from_dict({"variant": variant, "num_experts": 4}))
    return VersatileLlamaForCausalLM(config).to(dtype).eval()


@torch.no_grad()
def directly(model, ids: list[int], window: int, stride: int) -> float:
    """−log p of each token of `ids` but the first, each from a forward pass of its own."""
    total = 0.0
    for target in range(1, len(ids)):
        steps = max(0, math.ceil((target - window) / stride))  # how often the window has moved
        last = min(len(ids) - 1, window + steps * stride)
        read = ids[max(0, last - window) : target]
        logits = model(input_ids=torch.tensor([read])).logits[0, -1].double()
        total -= logits.log_softmax(-1)[ids[target]].item()
    return total


@pytest.mark.parametrize("variant", ["plain", "versatile", "moe"])
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_every_token_is_scored_as_by_hand(tokenizer, texts, variant, window, stride) -> None:
    model = build(variant)
    found = perplexity(model, tokenizer, texts, window, stride)
    ids = [[tokenizer.eos_token_id, *tokenizer(text).input_ids] for text in texts]
    expected = [directly(model, row, window, stride) for row in ids]
    assert found.nats_per_text == pytest.approx(expected, rel=1e-10)
    assert found.tokens == sum(len(row) - 1 for row in ids)
    assert found.nats_per_token == pytest.approx(sum(expected) / found.tokens, rel=1e-10)
    assert found.bytes == sum(len(text.encode()) for text in texts)
    assert found.bytes > sum(len(text) for text in texts)  # not characters
    bits = sum(expected) / math.log(2) / found.bytes
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-10)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))
    assert (found.texts, found.window, found.stride) == (3, window, stride)


def test_the_window_matters(tokenizer, texts) -> None:
    """The check above would not notice a window that is ignored, if this weren't so."""
    model = build("plain")
    results = {perplexity(model, tokenizer, texts, *pair).nats_per_token for pair in WINDOWS}
    assert len(results) == len(WINDOWS)


def test_batches_and_precision_change_only_rounding(tokenizer, texts, monkeypatch) -> None:
    exact = perplexity(build("versatile"), tokenizer, texts, 16, 4)
    monkeypatch.setattr("versatileffn.evaluation.perplexity.LOGITS_AT_ONCE", 1)
    alone = perplexity(build("versatile"), tokenizer, texts, 16, 4)
    single = perplexity(build("versatile", torch.float32), tokenizer, texts, 16, 4)
    assert alone.nats_per_text == pytest.approx(exact.nats_per_text, rel=1e-12)
    assert single.nats_per_text == pytest.approx(exact.nats_per_text, rel=1e-5)
    assert single.nats_per_text != exact.nats_per_text


def test_a_bos_token_is_read_first_where_there_is_one() -> None:
    both = SimpleNamespace(bos_token_id=0, eos_token_id=7)
    assert prefix_token(both) == 0
    assert prefix_token(SimpleNamespace(bos_token_id=None, eos_token_id=7)) == 7
    with pytest.raises(DataError, match="neither a bos nor an eos"):
        prefix_token(SimpleNamespace(bos_token_id=None, eos_token_id=None))


@given(
    length=st.integers(1, 60),
    window=st.integers(1, 20),
    stride=st.integers(1, 20),
)
def test_windows_score_each_token_once_with_context(length: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    scored = []
    for span in windows(list(range(length)), window, stride):
        assert 1 <= len(span.targets) <= len(span.inputs) <= window
        joined = [*span.inputs, span.targets[-1]]
        assert joined == list(range(joined[0], joined[-1] + 1))  # a piece of the text
        assert list(span.targets) == joined[-len(span.targets) :]
        for target in span.targets:
            assert target - span.inputs[0] >= min(target, window - stride)
        scored += span.targets
    assert scored == list(range(1, length))


def test_batches_hold_windows_of_one_length_and_lose_none() -> None:
    spans = [Span(i, range(2 + i % 3), range(1 + i % 2)) for i in range(40)]
    grouped = list(batches(iter(spans), positions=6))
    assert sorted(s.text for group in grouped for s in group) == list(range(40))
    for group in grouped:
        assert len({len(span.inputs) for span in group}) == 1
        assert len(group) * max(len(span.targets) for span in group) <= 6
    assert max(map(len, grouped)) > 1


def test_a_small_stride_makes_no_gigantic_batch() -> None:
    ids = range(9000)
    sizes = [len(g) * len(g[0].inputs) for g in batches(windows(ids, 1024, 1), positions=10**6)]
    assert max(sizes) <= TOKENS_AT_ONCE
    assert max(sizes) > TOKENS_AT_ONCE / 2


def test_few_windows_wait_however_many_lengths_there_are(monkeypatch) -> None:
    monkeypatch.setattr("versatileffn.evaluation.perplexity.TOKENS_WAITING", 500)
    spans = [Span(i, range(1 + i % 50), range(1)) for i in range(1000)]
    taken = 0

    def counted():
        nonlocal taken
        for span in spans:
            taken += len(span.inputs)
            yield span

    found, read = [], 0
    for group in batches(counted(), positions=10**6):
        assert len({len(span.inputs) for span in group}) == 1
        read += sum(len(span.inputs) for span in group)
        assert taken - read <= 500 + 50
        found += [span.text for span in group]
        if taken == sum(len(span.inputs) for span in spans):
            break
    assert len(found) == len(set(found)) > 900


def test_a_long_text_is_encoded_in_pieces_and_scored_as_a_whole(tokenizer, monkeypatch) -> None:
    """The pieces are a few hundred characters here, and the tokens still those of the whole."""
    given = []
    encode = LongTextEncoder._encode

    def spy(self, text, start, size):
        given.append(size)
        return encode(self, text, start, size)

    text = "".join(f"{word} Grüße 🎈 " for word in range(120))
    whole = [tokenizer.eos_token_id, *tokenizer(text).input_ids]
    monkeypatch.setattr(LongTextEncoder, "_encode", spy)
    monkeypatch.setattr(LongTextEncoder.__init__, "__defaults__", (256, 1024))
    model = build("plain")
    found = perplexity(model, tokenizer, [text], 64)
    assert len(given) > 5
    assert max(given) < len(text)
    spans = list(windows(whole, 64, 32))
    expected = sum(sum(negative_log_likelihoods(model, [span])) for span in spans)
    assert found.tokens == len(whole) - 1
    assert found.nats_per_text == pytest.approx((expected,), rel=1e-10)
    assert found.bytes == len(text.encode())
    assert found.uncertain == 0


MEMORY = """
import resource, sys
from versatileffn.data.tokenizers import train_bpe
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
words = RequestTokenizer(train_bpe(["some words and more of them "], 300))
text = "".join(f"some words {n} and more of them " for n in range(100_000))
list(zip(range(10**5), words.stream(text)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in words.stream(text))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert count > 500_000
print(grown * 1024 / len(text))
"""


def test_memory_does_not_follow_the_length_of_a_text() -> None:
    """Given at once, the tokenizer takes some 200 bytes for each of it."""
    command, env = [sys.executable, "-c", MEMORY], os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5


def test_a_window_that_cannot_fit_is_refused_before_it_is_tried(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("versatileffn.memory.available_memory", lambda device: 2**18)
    monkeypatch.setattr("versatileffn.evaluation.perplexity.LOGITS_AT_ONCE", 50 * VOCAB)
    wide = LlamaForCausalLM(LlamaConfig(**(LLAMA.to_dict() | {"max_position_embeddings": 10**6})))
    text = "so many words " * 40
    pattern = r"a window of [\d,]+ tokens needs \d\.\d MiB of memory, .*: lower --window"
    with pytest.raises(ResourceError, match=pattern):
        perplexity(wide, tokenizer, [text], 10**6)
    assert perplexity(wide, tokenizer, [text], 10).tokens > 100


def test_memory_that_ran_out_is_told(tokenizer, texts, monkeypatch) -> None:
    model = build("plain")

    def forward(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ResourceError, match="ran out of memory: lower --window"):
        perplexity(model, tokenizer, texts, 16)


def test_measuring_leaves_the_model_as_it_was(tokenizer, texts) -> None:
    model = build("versatile").train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = perplexity(model, tokenizer, texts, 16)
    assert torch.equal(torch.rand(3), expected)
    assert all(module.training for module in model.modules())
    assert first == perplexity(model, tokenizer, texts, 16)  # no noise


def test_defaults_follow_the_model() -> None:
    def longest(tokens):
        return SimpleNamespace(config=LlamaConfig(max_position_embeddings=tokens))

    assert check_window(longest(64), None, None) == (64, 32)
    assert check_window(longest(8192), None, None) == (2048, 1024)
    assert check_window(longest(8192), 4096, None) == (4096, 2048)


def test_bad_input_is_named(tokenizer, texts) -> None:
    model = build("plain")
    with pytest.raises(ConfigError, match="window=65 must lie in 1 to the model's longest"):
        perplexity(model, tokenizer, texts, 65)
    with pytest.raises(ConfigError, match="stride=17 must lie in 1 to window=16"):
        perplexity(model, tokenizer, texts, 16, 17)
    with pytest.raises(DataError, match="no text to score"):
        perplexity(model, tokenizer, ["", ""])
    small = LlamaForCausalLM(LlamaConfig(**(LLAMA.to_dict() | {"vocab_size": 10})))
    with pytest.raises(DataError, match="the model's vocabulary has 10"):
        perplexity(small, tokenizer, texts)
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(CheckpointError, match="gives text 1 a log-likelihood of nan"):
        perplexity(model, tokenizer, texts)


def test_the_command_prints_and_writes(tokenizer, texts, tmp_path) -> None:
    import typer

    model = build("versatile", torch.float32)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines, encoding="utf-8")
    app = typer.Typer()
    app.command()(perplexity_command)
    arguments = [str(tmp_path / "model"), str(tmp_path / "texts.jsonl"), "--window", "16"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out.json").read_text())
    expected = perplexity(model, tokenizer, texts, 16)
    assert record["nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-6)
    assert record["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
    assert (record["tokens"], record["documents"]) == (expected.tokens, 3)
    assert (record["window"], record["stride"]) == (16, 8)
    assert {"command", "versions", "device", "dtype", "model"} <= record.keys()
    assert len(record["model_sha256"]) == len(record["tokenizer_sha256"]) == 64
    assert f"{expected.bits_per_byte:.4f} bits/byte" in done.output
