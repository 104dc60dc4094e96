"""Tokens of a text in pieces are those of the whole text, or the encoder says that they may not be.

Windows of a few dozen characters make every text a long one.
"""

import json
from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from versatileffn.data.default_corpus import source_files, standard_library
from versatileffn.data.long_text import LongTextEncoder
from versatileffn.data.tokenizers import train_bpe

ROOT = standard_library()
TEXTS = [(ROOT / name).read_text(encoding="utf-8") for name in source_files(ROOT)[:40:4]]
PROSE = "\n".join(TEXTS)[:60_000]
UNKNOWN = "<unk>"


def ours() -> Tokenizer:
    """What `tokenize` trains: byte-level BPE."""
    return train_bpe(TEXTS, 1500).backend_tokenizer


def unigram() -> Tokenizer:
    """As T5's and other tokenizers of sentencepiece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1000, unk_token=UNKNOWN, special_tokens=[UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    """As BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1500, special_tokens=[UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def llama() -> Tokenizer:
    """As Llama 2's: BPE without a pre-tokenizer, so that a text is one word."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens = [UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    record = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    whole = Tokenizer.from_str(json.dumps(record))
    whole.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return whole


@pytest.fixture(scope="module", params=[ours, unigram, wordpiece, llama])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    make: Callable[[], Tokenizer] = request.param
    return make()


def runs() -> st.SearchStrategy[str]:
    """Texts of real prose, repetitions and anything, one after the other."""
    prose = st.integers(0, len(PROSE) - 500).map(lambda start: PROSE[start : start + 500])
    units = st.sampled_from(
        [" ", "\n", "a", "ab", "12", "é", "e\u0301", "你好", "🎈", "\r\n", "'s"]
    )
    repeated = st.tuples(units, st.integers(1, 300)).map(lambda pair: pair[0] * pair[1])
    return st.lists(st.one_of(prose, repeated, st.text(max_size=300)), max_size=8).map("".join)


def whole_and_pieces(
    tokenizer: Tokenizer, text: str, window: int, longest: int = 2048
) -> tuple[list[int], list[int], int]:
    encoder = LongTextEncoder(tokenizer, window, longest)
    pieces = [token for piece in encoder.pieces(text) for token in piece]
    return tokenizer.encode(text, add_special_tokens=False).ids, pieces, encoder.uncertain


@settings(max_examples=150, deadline=None)
@given(text=runs(), window=st.sampled_from([64, 150, 512]))
@example(text="", window=64)
@example(text=" " * 3000, window=64)
@example(text="ab" * 1500 + "a" * 999, window=64)
def test_pieces_are_the_whole(tokenizer: Tokenizer, text: str, window: int) -> None:
    whole, pieces, uncertain = whole_and_pieces(tokenizer, text, window)
    assert pieces == whole or uncertain


def test_prose_is_certain(tokenizer: Tokenizer) -> None:
    whole, pieces, uncertain = whole_and_pieces(tokenizer, PROSE, 1024)
    assert pieces == whole
    assert not uncertain


def test_a_plain_cut_is_noticed(tokenizer: Tokenizer) -> None:
    """The wrong control: cut anywhere, without looking for agreement, tokens differ."""
    cut = [PROSE[start : start + 256] for start in range(0, len(PROSE), 256)]
    pieces = [token for part in cut for token in tokenizer.encode(part).ids]
    assert pieces != tokenizer.encode(PROSE).ids


def test_a_word_without_end_is_exact_where_merges_decide() -> None:
    for make in (ours, llama):
        whole, pieces, uncertain = whole_and_pieces(make(), "abcab" * 2000, 256, longest=256)
        assert pieces == whole
        assert not uncertain


def test_a_word_without_end_is_cut_and_told() -> None:
    """WordPiece knows no word of 5000 letters; no window finds a place to hand over."""
    whole, pieces, uncertain = whole_and_pieces(wordpiece(), "x" * 5000, 64, longest=256)
    assert len(whole) == 1 < len(pieces) <= 5000 / 256 + 1
    assert uncertain == len(pieces) - 1


def test_truncation_and_padding_have_no_say() -> None:
    tokenizer = ours()
    expected = tokenizer.encode(PROSE).ids
    tokenizer.enable_truncation(10)
    tokenizer.enable_padding(length=100_000)
    assert [*chain(*LongTextEncoder(tokenizer, 256).pieces(PROSE))] == expected
