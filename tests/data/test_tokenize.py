"""The whole path from files to a token folder, its split, its safety and its resumption."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from versatileffn.data import corpus as corpus_module
from versatileffn.data.meta import TokenMeta
from versatileffn.data.packed import PackedDataset
from versatileffn.data.pipeline import SplitTokenizer
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import DataError
from versatileffn.workspace.manifest import damage

WIKI = Path(__file__).parents[2].parent / "shared" / "data" / "wiki_val.jsonl"


def documents_in(folder: Path, split: str) -> list[str]:
    """The split's documents, decoded: the stream cut at the end-of-text token."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    dataset = PackedDataset(folder, split, seq_len=2)
    stream = dataset.tokens(0, dataset.num_tokens)
    ends = np.flatnonzero(stream == dataset.meta.eos_token_id) + 1
    assert ends[-1] == len(stream)
    parts = np.split(stream, ends)[:-1]
    return [tokenizer.decode(part[:-1].tolist()) for part in parts]


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_tokens_are_the_documents(tokens: Path, texts: list[str]) -> None:
    train, val = documents_in(tokens, "train"), documents_in(tokens, "val")
    assert sorted(train + val) == sorted(texts)
    assert not set(train) & set(val)
    meta = TokenMeta.load(tokens)
    for split, documents in (("train", train), ("val", val)):
        assert meta.splits[split].documents == len(documents)
        assert meta.splits[split].bytes == sum(len(text.encode()) for text in documents)
        assert meta.splits[split].tokens == PackedDataset(tokens, split, 2).num_tokens
    assert len(val) in (5, 6)  # the two copies stay together
    tokenizer_json = (tokens / "tokenizer" / "tokenizer.json").read_bytes()
    assert meta.tokenizer.sha256 == hashlib.sha256(tokenizer_json).hexdigest()
    assert {"meta.json", "tokenizer", "train", "val"} == {p.name for p in tokens.iterdir()}


def test_meta_file_has_the_agreed_layout(tokens: Path) -> None:
    record = json.loads((tokens / "meta.json").read_text())
    assert record["format"] == 2
    assert set(record["tokenizer"]) == {"path", "sha256", "vocab_size", "eos_token_id"}
    assert set(record["splits"]["val"]) == {"documents", "tokens", "bytes"}
    assert {"python", "transformers", "tokenizers"} <= set(record["versions"])
    assert record["tokenizer"]["vocab_size"] == 400


def test_workers_do_not_change_the_tokens(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "TASK_BYTES", 10_000)
    for workers in (1, 2):
        tokenize_corpus(corpus_folder, tmp_path / str(workers), vocab_size=300, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(list((tmp_path / "1" / "train").glob("*.ds"))) == 4
    assert all(path.stat().st_size for path in tmp_path.glob("*/*/*.ds"))


def test_error_in_a_worker_arrives_and_leaves_nothing(
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(corpus_module, "TASK_BYTES", 10_000)
    source = tmp_path / "source"
    source.mkdir()
    for path in corpus_folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "2.jsonl").write_text('{"text": "good"}\nbad\n')
    with pytest.raises(DataError, match=r"2\.jsonl, line 2: not JSON"):
        tokenize_corpus(source, tmp_path / "out", workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert "INFO" not in capfd.readouterr().err


def test_seed_chooses_the_held_out_documents(
    corpus_folder: Path, tokens: Path, tmp_path: Path
) -> None:
    tokenize_corpus(corpus_folder, tmp_path / "a", vocab_size=400, val_documents=5)
    tokenize_corpus(corpus_folder, tmp_path / "b", vocab_size=400, val_documents=5, seed=1)
    assert contents(tmp_path / "a") == contents(tokens)
    assert set(documents_in(tmp_path / "b", "val")) != set(documents_in(tokens, "val"))


def test_val_fraction(corpus_folder: Path, tmp_path: Path) -> None:
    meta = tokenize_corpus(corpus_folder, tmp_path / "a", vocab_size=300, val_fraction=0.25)
    assert meta.splits["val"].documents in (10, 11)
    meta = tokenize_corpus(corpus_folder, tmp_path / "b", vocab_size=300, val_fraction=0)
    assert list(meta.splits) == ["train"]
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"meta.json", "tokenizer", "train"}
    with pytest.raises(DataError, match=r"no split 'val', only \['train'\]"):
        PackedDataset(tmp_path / "b", "val", 8)


def test_limit_takes_the_first_documents_of_the_default_corpus(tmp_path: Path) -> None:
    meta = tokenize_corpus(None, tmp_path / "out", vocab_size=300, limit_documents=12)
    assert sum(split.documents for split in meta.splits.values()) == 12
    assert meta.splits["val"].documents == 1
    assert meta.source.startswith("Python 3")


def test_a_document_can_not_forge_the_end_of_text(tmp_path: Path) -> None:
    forged = "before<|endoftext|>after " * 50
    (tmp_path / "a.txt").write_text(forged)
    (tmp_path / "b.txt").write_text("another document")
    tokenize_corpus(tmp_path, tmp_path / "out", vocab_size=300, val_documents=1)
    found = documents_in(tmp_path / "out", "train") + documents_in(tmp_path / "out", "val")
    assert sorted(found) == ["another document", forged]


def test_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    words = {"<|endoftext|>": 0, "unk": 1} | {f"w{i}": i for i in range(2, 70_000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="unk"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "words.json"))
    (tmp_path / "a.txt").write_text("w69999 w2 other w66000")
    meta = tokenize_corpus(
        tmp_path / "a.txt", tmp_path / "out", tokenizer=str(tmp_path / "words.json"), val_fraction=0
    )
    assert (meta.vocab_size, meta.token_bytes) == (70_000, 4)
    dataset = PackedDataset(tmp_path / "out", seq_len=5)
    assert dataset[0]["input_ids"].tolist() == [69999, 2, 1, 66000, 0]


def test_output_is_protected(tokens: Path, corpus_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    tokenize_corpus(corpus_folder, out, vocab_size=300)
    before = contents(out)
    with pytest.raises(DataError, match=r"already exists.*--overwrite"):
        tokenize_corpus(corpus_folder, out, vocab_size=400, val_documents=5)
    (tmp_path / "bad.jsonl").write_text("no JSON")
    with pytest.raises(DataError, match="line 1"):
        tokenize_corpus(tmp_path / "bad.jsonl", out, overwrite=True)
    assert contents(out) == before
    tokenize_corpus(corpus_folder, out, vocab_size=400, val_documents=5, overwrite=True)
    assert contents(out) == contents(tokens)
    assert {path.name for path in tmp_path.iterdir()} == {"tokens", "bad.jsonl"}


def test_interrupted_run_continues(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "TASK_BYTES", 10_000)
    tokenize_corpus(corpus_folder, tmp_path / "whole", vocab_size=300)
    run, ranks, stop_at = SplitTokenizer.run, [], 2

    def interrupted(self, texts, rank):  # type: ignore[no-untyped-def]
        ranks.append(rank)
        if rank == stop_at:
            raise KeyboardInterrupt
        run(self, texts, rank)

    monkeypatch.setattr(SplitTokenizer, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(corpus_folder, tmp_path / "out", vocab_size=300)
    assert not (tmp_path / "out").exists()
    stop_at = -1
    tokenize_corpus(corpus_folder, tmp_path / "out", vocab_size=300)
    assert ranks == [0, 1, 2, 2, 3]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def stopped_at(rank_to_stop: int, ranks: list[int]) -> Callable[..., None]:
    """A `SplitTokenizer.run` that notes its tasks and is interrupted at one of them."""
    run = SplitTokenizer.run

    def interrupted(self, texts, rank):  # type: ignore[no-untyped-def]
        ranks.append(rank)
        if rank == rank_to_stop:
            raise KeyboardInterrupt
        run(self, texts, rank)

    return interrupted


@pytest.mark.parametrize("change", [lambda c: bytes(len(c)), lambda c: c[:-2], None])
def test_a_finished_shard_that_changed_is_made_again(
    change: Callable[[bytes], bytes] | None,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corpus_module, "TASK_BYTES", 10_000)
    tokenize_corpus(corpus_folder, tmp_path / "whole", vocab_size=300)
    ranks: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(SplitTokenizer, "run", stopped_at(3, ranks))
        with pytest.raises(KeyboardInterrupt):
            tokenize_corpus(corpus_folder, tmp_path / "out", vocab_size=300)
    (shard,) = tmp_path.glob(".out*/new/train/00001.ds")
    if change is None:
        shard.unlink()
    else:
        shard.write_bytes(change(shard.read_bytes()))
    monkeypatch.setattr(SplitTokenizer, "run", stopped_at(-1, ranks))
    tokenize_corpus(corpus_folder, tmp_path / "out", vocab_size=300)
    assert ranks == [0, 1, 2, 3, 1, 3]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not damage(tmp_path / "out", TokenMeta.load(tmp_path / "out").files)


def test_a_refusal_to_publish_keeps_the_shards(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, ranks, save = tmp_path / "out", [], TokenMeta.save

    def save_and_be_overtaken(self: TokenMeta, folder: Path) -> None:
        save(self, folder)
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")

    with monkeypatch.context() as patch:
        patch.setattr(TokenMeta, "save", save_and_be_overtaken)
        with pytest.raises(DataError, match="never replaced"):
            tokenize_corpus(corpus_folder, out, vocab_size=300)
    assert (out / "thesis.tex").read_text() == "years of work"
    (out / "thesis.tex").unlink()
    monkeypatch.setattr(SplitTokenizer, "run", stopped_at(-1, ranks))
    tokenize_corpus(corpus_folder, out, vocab_size=300)
    assert ranks == []  # nothing had to be done again
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_corpus_that_changes_while_it_is_read(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shrinking(self, texts, rank):  # type: ignore[no-untyped-def]
        run(self, iter(list(texts)[1:]), rank)

    run = SplitTokenizer.run
    monkeypatch.setattr(SplitTokenizer, "run", shrinking)
    with pytest.raises(DataError, match="changed while it was read"):
        tokenize_corpus(corpus_folder, tmp_path / "out", vocab_size=300)


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"\xff.jsonl")
    source.write_text('{"text": "one"}\n{"text": "two"}')
    meta = tokenize_corpus(source, tmp_path / "out", vocab_size=300)
    assert meta.source == str(tmp_path / "?.jsonl")
    with pytest.raises(DataError, match="isn't UTF-8: choose another"):
        tokenize_corpus(source, tmp_path / os.fsdecode(b"\xff"))


def test_progress_tells_the_time_left(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "TASK_BYTES", 10_000)
    run, lines = SplitTokenizer.run, []

    def slowly(self, texts, rank):  # type: ignore[no-untyped-def]
        run(self, texts, rank)
        time.sleep(0.3)

    monkeypatch.setattr(SplitTokenizer, "run", slowly)
    tokenize_corpus(corpus_folder, tmp_path / "out", vocab_size=300, progress=lines.append)
    assert "reading the corpus: 0/4 tasks" in lines
    assert any(
        re.fullmatch(r"tokenizing: .*M tokens, [1-3]/4 tasks, about 0:00:0\d left", line)
        for line in lines
    )


@pytest.mark.skipif(not WIKI.exists(), reason="the shared Wikipedia sample isn't here")
def test_wikipedia_sample_round_trips(tmp_path: Path) -> None:
    with WIKI.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    meta = tokenize_corpus(WIKI, tmp_path / "out", vocab_size=2048, val_fraction=0.1)
    found = documents_in(tmp_path / "out", "train") + documents_in(tmp_path / "out", "val")
    assert sorted(found) == sorted(texts)
    assert meta.splits["val"].documents == pytest.approx(0.1 * len(texts), abs=2)
    assert meta.splits["train"].bytes_per_token > 2.5
