"""Existing tokenizers are found or refused with a reason; trained ones give text back."""

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from versatileffn.data import tokenizers as tokenizers_module
from versatileffn.data.tokenizers import (
    EOS_TOKEN,
    find_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)
from versatileffn.errors import ConfigError, DataError


def word_level(path: Path, *words: str) -> Path:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def test_trained_bpe_saves_loads_and_learns(texts: list[str], tmp_path: Path) -> None:
    trained = train_bpe(texts, 500)
    meta = save_tokenizer(trained, tmp_path)
    assert (meta.vocab_size, meta.eos_token_id, len(meta.sha256)) == (500, 0, 64)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert loaded.eos_token == EOS_TOKEN
    num_tokens = 0
    for text in texts:
        ids = loaded.encode(text)
        assert ids == trained.encode(text)
        assert loaded.decode(ids) == text
        num_tokens += len(ids)
    assert num_tokens < 0.6 * sum(len(text.encode()) for text in texts)
    assert load_tokenizer(tmp_path).get_vocab() == trained.get_vocab()


def test_training_is_the_same_in_another_process(texts: list[str]) -> None:
    code = (
        "import sys; from versatileffn.data.tokenizers import train_bpe;"
        "print(train_bpe(sys.stdin.read().split('\\0'), 500).backend_tokenizer.to_str(), end='')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input="\0".join(texts), capture_output=True, text=True
    )
    assert run.stdout == train_bpe(texts, 500).backend_tokenizer.to_str(), run.stderr


def test_vocabulary_without_room_for_the_bytes() -> None:
    with pytest.raises(ConfigError, match="vocab_size=256 must be at least 257"):
        train_bpe(["text"], 256)


def test_few_texts_give_a_smaller_vocabulary(tmp_path: Path) -> None:
    assert save_tokenizer(train_bpe(["ab ab ab"], 5000), tmp_path).vocab_size < 300


def test_missing_tokenizer(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), "./none", "a/b/c", "none.json"):
        with pytest.raises(DataError, match="no such tokenizer"):
            find_tokenizer(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        find_tokenizer(str(tmp_path / "empty"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        find_tokenizer(str(tmp_path / "tokenizer.json"))


def test_missing_hub_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no tokenizer could be loaded") as caught:
        find_tokenizer("no-such-owner/no-such-tokenizer")
    assert "\n" not in str(caught.value)


def test_end_of_text_must_exist(tmp_path: Path) -> None:
    path = str(word_level(tmp_path / "words.json", "unk", "stop"))
    with pytest.raises(DataError, match=r"no end-of-text token.*--eos-token"):
        find_tokenizer(path)
    with pytest.raises(DataError, match="has no token 'end'"):
        find_tokenizer(path, eos_token="end")
    assert find_tokenizer(path, eos_token="stop").eos_token_id == 1


def test_usual_end_of_text_is_recognised_in_a_bare_folder(tmp_path: Path) -> None:
    word_level(tmp_path / "tokenizer.json", "unk", "x", "</s>")
    assert find_tokenizer(str(tmp_path)).eos_token_id == 2


def test_olmo_tokenizer() -> None:
    pytest.importorskip("olmo_eval", reason="the extra `eval` isn't installed")
    olmo = find_tokenizer("olmo")
    assert (len(olmo), olmo.eos_token_id) == (50280, 50279)
    assert olmo.decode(olmo.encode("def f(x):\n    return x")) == "def f(x):\n    return x"


def test_olmo_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"versatileffn\[eval\]"):
        find_tokenizer("olmo")


def test_token_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer in this token folder"):
        load_tokenizer(tmp_path)
