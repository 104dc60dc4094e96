"""Existing tokenizers are found or refused with a reason; trained ones give text back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from versatileffn.data import tokenizers as tokenizers_module
from versatileffn.data.long_text import parts_at_spaces
from versatileffn.data.meta import TokenMeta
from versatileffn.data.tokenizers import (
    EOS_TOKEN,
    find_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
)
from versatileffn.errors import ConfigError, DataError
from versatileffn.models.hub import hub_options


def word_level(path: Path, *words: str) -> Path:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def test_trained_bpe_saves_loads_and_learns(texts: list[str], tmp_path: Path) -> None:
    trained = train_bpe(texts, 500)
    meta = save_tokenizer(trained, tmp_path, tmp_path / "new")
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
    assert find_tokenizer(str(tmp_path / "tokenizer")).get_vocab() == trained.get_vocab()


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
    assert (
        save_tokenizer(train_bpe(["ab ab ab"], 5000), tmp_path, tmp_path / "new").vocab_size < 300
    )


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
    with pytest.raises(DataError, match=r"pip install -e '\.\[eval\]'"):
        find_tokenizer("olmo")


@pytest.fixture
def copy(tokens: Path, tmp_path: Path) -> Path:
    """A token folder to damage."""
    return Path(shutil.copytree(tokens, tmp_path / "tokens"))


def test_token_folder_knows_its_tokenizer(tokens: Path) -> None:
    loaded = load_tokenizer(tokens)
    assert len(loaded) == 400
    assert find_tokenizer(str(tokens)).get_vocab() == loaded.get_vocab()


def test_token_folder_without_tokenizer(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text('{"garbage": ')
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        load_tokenizer(copy)
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer\.json in this token folder"):
        load_tokenizer(copy)
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(DataError, match=r"no tokenizer\.json in this token folder"):
        load_tokenizer(copy)


def test_token_folder_with_a_swapped_tokenizer(copy: Path, texts: list[str]) -> None:
    own = TokenMeta.load(copy).tokenizer.sha256
    shutil.rmtree(copy / "tokenizer")
    other = save_tokenizer(train_bpe(texts[:5], 400), copy, copy / "new").sha256
    with pytest.raises(DataError, match=f"sha256 is {other}, meta.json says {own}"):
        load_tokenizer(copy)


def test_token_folder_with_another_end_of_text(copy: Path) -> None:
    path = copy / "tokenizer" / "tokenizer_config.json"
    path.write_text(path.read_text().replace(EOS_TOKEN, "a"))
    with pytest.raises(DataError, match=r"its eos_token_id is \d+, meta.json says 0"):
        load_tokenizer(copy)


def test_token_folder_that_names_another_folder(copy: Path) -> None:
    meta = (copy / "meta.json").read_text()
    (copy / "meta.json").write_text(meta.replace('"path": "tokenizer"', '"path": "."'))
    with pytest.raises(DataError, match=r"its path is tokenizer, meta\.json says \."):
        load_tokenizer(copy)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("bpee", "did you mean `bpe`"), ("BPE", "`bpe`"), ("Olmo", "`olmo`"), ("", "name a")],
)
def test_slip_of_the_pen(name: str, remedy: str) -> None:
    with pytest.raises(DataError, match=f"no such tokenizer.*{remedy}"):
        find_tokenizer(name)


def test_paths_never_go_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(tokenizers_module, "_from_hub", asked.append)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("here/none", "pipe", "~/tok", "tok/", "tok.json", "a b"):
        with pytest.raises(DataError, match="no such tokenizer"):
            find_tokenizer(name)
    assert not asked


def test_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the network gone, only what is on this machine is tried, and no retry is."""
    calls = []

    def unreachable(self: object, name: str, timeout: float) -> None:
        calls.append(name)
        raise ConnectionError

    def load(name: str, local_files_only: bool, **_: object) -> None:
        calls.append(local_files_only)
        raise OSError("not on this machine")

    hub_options.cache_clear()
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    with pytest.raises(DataError, match="not on this machine"):
        find_tokenizer("some-owner/some-tokenizer")
    assert calls == ["some-owner/some-tokenizer", True]
    hub_options.cache_clear()


def test_a_long_text_teaches_what_its_parts_teach(texts: list[str]) -> None:
    """A text is cut where the pre-tokenizer cuts, so that memory stays small."""
    whole = "\n".join(texts)
    parts = list(parts_at_spaces(whole, 500))
    assert "".join(parts) == whole
    assert len(parts) > len(whole) / 600
    split = ByteLevel(add_prefix_space=False).pre_tokenize_str
    words = [word for part in parts for word, _ in split(part)]
    assert words == [word for word, _ in split(whole)]


@pytest.mark.parametrize("largest", [2**24, 2**32 - 1, 2**63])
def test_token_ids_out_of_all_proportion(largest: int, tmp_path: Path) -> None:
    words = {"<|endoftext|>": 0, "a": 1}
    record = json.loads(Tokenizer(models.WordLevel(words, unk_token="a")).to_str())
    record["model"]["vocab"]["a"] = largest
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"ids must be below|no tokenizer could be") as caught:
        find_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
