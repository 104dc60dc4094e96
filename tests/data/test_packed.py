"""What PackedDataset refuses, and that it travels to loader workers."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from versatileffn.data.meta import TokenMeta
from versatileffn.data.order import window_order
from versatileffn.data.packed import PackedDataset
from versatileffn.errors import ConfigError, DataError
from versatileffn.workspace.manifest import damage, names_in


@pytest.fixture
def copy(tokens: Path, tmp_path: Path) -> Path:
    """A token folder to damage."""
    return Path(shutil.copytree(tokens, tmp_path / "tokens"))


def test_windows(tokens: Path) -> None:
    dataset = PackedDataset(tokens, "train", seq_len=64)
    window = dataset[3]
    assert window["input_ids"].dtype == torch.int64
    assert window["input_ids"].tolist() == dataset.tokens(192, 256).tolist()
    assert window["labels"] is window["input_ids"]
    assert torch.equal(dataset[-1]["input_ids"], dataset[len(dataset) - 1]["input_ids"])
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert dataset.meta.vocab_size == 400


def test_pickle_carries_no_tokens(tokens: Path) -> None:
    dataset = PackedDataset(tokens, "train", seq_len=64)
    first = dataset[0]["input_ids"]
    content = pickle.dumps(dataset)
    assert len(content) < 5000 < dataset.num_tokens
    assert torch.equal(pickle.loads(content)[0]["input_ids"], first)


def test_a_loader_in_another_process_continues(tokens: Path) -> None:
    dataset = PackedDataset(tokens, "train", seq_len=64)
    order = window_order(len(dataset), seed=3, epoch=0).tolist()

    def batches(windows: list[int]) -> list[list[list[int]]]:
        loader = DataLoader(dataset, batch_size=2, sampler=windows, num_workers=1)
        return [batch["input_ids"].tolist() for batch in loader]

    whole, rest = batches(order), batches(order[6:])
    assert whole[3:] == rest
    assert len(rest) > 3


def test_missing_and_half_written_folder(copy: Path) -> None:
    with pytest.raises(DataError, match="no such token folder; write it again"):
        PackedDataset(copy / "none")
    with pytest.raises(DataError, match="no such token folder"):
        PackedDataset(copy / ("x" * 300))
    (copy / "meta.json").unlink()
    with pytest.raises(DataError, match=r"no meta\.json.*only half of one; write it again"):
        PackedDataset(copy)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", "", "[" * 99_999, '{"format": 1}', '{"format": 9}']
)
def test_unreadable_meta(content: str, copy: Path) -> None:
    (copy / "meta.json").write_text(content)
    with pytest.raises(DataError, match=r"meta\.json: (not a valid|format [19])"):
        PackedDataset(copy)


def test_meta_with_an_unknown_entry(copy: Path) -> None:
    record = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(record | {"extra": 1}))
    with pytest.raises(DataError, match="extra"):
        PackedDataset(copy)


def test_damaged_shards(copy: Path) -> None:
    shard = next((copy / "train").glob("*.ds"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match="aren't one or more whole 2-byte tokens"):
        PackedDataset(copy)
    shard.write_bytes(content[:-2])
    with pytest.raises(DataError, match=r"tokens, but meta\.json says"):
        PackedDataset(copy)
    shard.unlink()
    with pytest.raises(DataError, match=r"00000\.ds: can't be read \(No such file"):
        PackedDataset(copy)
    shard.touch()
    with pytest.raises(DataError, match=r"00000\.ds: 0 bytes aren't"):
        PackedDataset(copy)


def test_tokens_outside_the_vocabulary(copy: Path) -> None:
    shard = next((copy / "train").glob("*.ds"))
    content = np.fromfile(shard, "<u2")
    content[100] = 400  # the vocabulary's size
    content.tofile(shard)
    dataset = PackedDataset(copy, seq_len=64)
    assert len(dataset[0]["input_ids"]) == 64
    with pytest.raises(DataError, match=r"token 400 among tokens 64-128 .*vocabulary of 400"):
        dataset[1]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("tokenizer", "vocab_size"), "400"),
        (("tokenizer", "vocab_size"), -1),
        (("tokenizer", "eos_token_id"), 400),
        (("tokenizer", "eos_token_id"), None),
        (("tokenizer", "sha256"), "abc"),
        (("splits", "train"), [1, 2, 3]),
        (("splits", "train", "tokens"), 1.5),
        (("splits", "train", "bytes"), 0),
        (("splits", "val", "documents"), -3),
        (("token_bytes",), 3),
        (("seed",), 2**63),
        (("tokenizer", "vocab_size"), 2**63),
        (("tokenizer", "vocab_size"), 70_000),
        (("tokenizer", "eos_token_id"), 2**63),
        (("splits", "train", "tokens"), 2**63),
        (("splits", "train", "tokens"), 1),
        (("files",), {}),
        (("files",), {"../other": "0" * 64}),
        (("files",), {"train/00000.ds": "abc"}),
        (("versions",), {"python": 3}),
        (("splits",), "train"),
    ],
)
def test_meta_with_a_wrong_value(place: tuple[str, ...], value: object, copy: Path) -> None:
    record = json.loads((copy / "meta.json").read_text())
    inner = record
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (copy / "meta.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=place[-1]) as caught:
        PackedDataset(copy)
    assert "\n" not in str(caught.value)


def test_sequence_longer_than_the_data(tokens: Path) -> None:
    tokens_there = PackedDataset(tokens, "val", 2).num_tokens
    assert len(PackedDataset(tokens, "val", tokens_there)) == 1
    with pytest.raises(DataError, match=f"fewer than one sequence of {tokens_there + 1}; lower"):
        PackedDataset(tokens, "val", tokens_there + 1)
    with pytest.raises(ConfigError, match="seq_len=1"):
        PackedDataset(tokens, "val", 1)


def test_wide_tokens_keep_their_values(copy: Path) -> None:
    record = json.loads((copy / "meta.json").read_text())
    shard = next((copy / "train").glob("*.ds"))
    np.arange(65_530, 65_540, dtype="<u4").tofile(shard)
    record["token_bytes"] = 4
    record["tokenizer"]["vocab_size"] = 65_540
    record["splits"]["train"] = {"documents": 1, "tokens": 10, "bytes": 10}
    (copy / "meta.json").write_text(json.dumps(record))
    assert PackedDataset(copy, seq_len=10)[0]["input_ids"].tolist() == list(range(65_530, 65_540))


def test_meta_lists_every_other_file_and_its_digest(copy: Path) -> None:
    files = TokenMeta.load(copy).files
    assert set(files) == {name for name in names_in(copy) if name != "meta.json"}
    assert not damage(copy, files)
    for name in files:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(bytes(len(content)))
        assert damage(copy, files) == [f"{name} isn't what was written"]
        (copy / name).write_bytes(content)


def test_only_shards_that_meta_lists_are_read(copy: Path) -> None:
    before = PackedDataset(copy, "train", 64).num_tokens
    (copy / "train" / "00009.ds").write_bytes(bytes(200))
    assert PackedDataset(copy, "train", 64).num_tokens == before
