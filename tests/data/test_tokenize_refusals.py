"""What `tokenize_corpus` refuses, in one line and without leaving anything behind."""

from pathlib import Path

import pytest

from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "an empty corpus, no document holds any text"),
        ('{"text": " "}\n{"text": "\\n"}', {}, "an empty corpus, no document holds any text"),
        ('{"text": "same"}\n{"text": "same"}', {}, "the val split came out empty.*--val-fraction"),
        ('{"text": "a"}\n{"text": "b"}', {"val_documents": 2}, "leaves none to train on"),
        ('{"text": "a"}', {"text_field": "body"}, r"no field 'body', only \['text'\]"),
        ('{"text": "a"}', {"tokenizer": "./none"}, "no such tokenizer"),
    ],
)
def test_bad_corpus(content: str, options: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        tokenize_corpus(tmp_path / "a.jsonl", tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 100},
        {"val_fraction": 1.0},
        {"val_documents": -1},
        {"workers": 0},
        {"limit_documents": 0},
        {"limit_documents": 2**64},
        {"vocab_size": 2**24 + 1},
        {"vocab_size": 10**30},
        {"seed": -1},
        {"seed": 2**63},
        {"val_documents": 2**64},
        {"val_fraction": 0.1, "val_documents": 3},
        {"eos_token": "</s>"},
        {"vocab_size": 4096, "tokenizer": "olmo"},
        {"document_separator": ""},
    ],
)
def test_bad_argument(options: dict, corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        tokenize_corpus(corpus_folder, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
