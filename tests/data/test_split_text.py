"""Bytes behind tokens, and the document that each belongs to."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from versatileffn.data.packed import PackedDataset
from versatileffn.data.split_text import SplitText
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import DataError

WORDS = "the cat sat on a mat and looked at another cat while the rain fell on and on"
TEXTS = [
    "def f(x):\n" + "        return x  # spaces\n" * 30,
    "Grüße aus Köln – 你好, мир 🎈🎈\n" * 9,
    WORDS,
    "x",
]


def document_tokens(dataset: PackedDataset) -> list[np.ndarray]:
    """The stream cut after each end of text."""
    stream = dataset.tokens(0, dataset.num_tokens)
    ends = np.flatnonzero(stream == dataset.meta.eos_token_id) + 1
    return np.split(stream, ends)[:-1]


def folder_of(tmp_path: Path, texts: list[str], tokenizer: str = "bpe") -> Path:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    sizes = {"vocab_size": 300} if tokenizer == "bpe" else {}
    tokenize_corpus(corpus, tmp_path / "tokens", tokenizer=tokenizer, val_fraction=0, **sizes)
    return tmp_path / "tokens"


def test_bytes_are_those_of_the_very_tokens(tmp_path: Path) -> None:
    """Byte-level: exact for every document, however few bytes of a character a token holds."""
    dataset = PackedDataset(folder_of(tmp_path, TEXTS), "train", seq_len=8)
    text = SplitText(dataset)
    found = [text.sizes(tokens).sum() for tokens in document_tokens(dataset)]
    assert found == [len(text.encode()) for text in TEXTS]
    per_token = [size / len(ids) for size, ids in zip(found, document_tokens(dataset), strict=True)]
    assert max(per_token) > 2 * min(per_token)  # the split's mean would be wrong for each


def test_the_end_of_text_stands_for_nothing(tmp_path: Path) -> None:
    dataset = PackedDataset(folder_of(tmp_path, TEXTS), "train", seq_len=8)
    assert SplitText(dataset).sizes(np.array([dataset.meta.eos_token_id])) == 0


def test_each_token_belongs_to_the_document_that_its_end_of_text_ends(tmp_path: Path) -> None:
    dataset = PackedDataset(folder_of(tmp_path, TEXTS), "train", seq_len=8)
    lengths = [len(tokens) for tokens in document_tokens(dataset)]
    found = SplitText(dataset).documents(np.arange(dataset.num_tokens))
    assert found.tolist() == np.repeat(range(4), lengths).tolist()


def metaspace() -> Tokenizer:
    """Like Llama's: a marked space before each word, bytes for what it doesn't know."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<unk>", "</s>", *fallback])
    tokenizer.train_from_iterator([WORDS, TEXTS[0]], trainer)
    model = json.loads(tokenizer.to_str())
    model["added_tokens"] = [t for t in model["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(model))


def word_piece() -> Tokenizer:
    """Like BERT's: lower case, `##` inside words, spaces nowhere."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=340, special_tokens=["[UNK]", "</s>"])
    tokenizer.train_from_iterator([WORDS, *TEXTS[:2]], trainer)
    return tokenizer


@pytest.mark.parametrize(("build", "tolerance"), [(metaspace, 0.01), (word_piece, 0.1)])
def test_other_vocabularies_come_to_the_bytes_that_were_tokenized(
    tmp_path: Path, build: Callable[[], Tokenizer], tolerance: float
) -> None:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=build(), eos_token="</s>", clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(tmp_path / "tokenizer")
    texts = [WORDS, " ".join(reversed(WORDS.split())), "A cat, a mat: " * 20]
    dataset = PackedDataset(folder_of(tmp_path, texts, str(tmp_path / "tokenizer")), "train", 8)
    text = SplitText(dataset)
    found = [text.sizes(tokens).sum() for tokens in document_tokens(dataset)]
    assert sum(found) == pytest.approx(dataset.size.bytes, rel=1e-12)
    assert found == pytest.approx([len(text) for text in texts], rel=tolerance)


def test_tokens_without_any_text_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TEXTS)
    dataset = PackedDataset(folder, "train", seq_len=8)
    for shard in (folder / "train").glob("*.ds"):
        shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(DataError, match="none of its tokens stands for text"):
        SplitText(dataset)
