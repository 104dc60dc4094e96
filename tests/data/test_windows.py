"""Token folders whose windows are questions: their length, what is scored, their order."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from support.families import tiny_dense
from versatileffn.data.meta import TokenMeta, Windows
from versatileffn.data.packed import PackedDataset
from versatileffn.errors import ConfigError, DataError
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.training.batches import BatchPlan, WindowBatches


@pytest.fixture
def questions(tokens: Path, tmp_path: Path) -> Path:
    """The shared tokens as windows of 16, of which the last 4 are scored."""
    folder = Path(shutil.copytree(tokens, tmp_path / "questions"))
    meta = TokenMeta.load(folder)
    dataclasses.replace(meta, windows=Windows(16, unscored=12, shuffled=False)).save(folder)
    return folder


def test_the_rest_is_not_scored(questions: Path) -> None:
    dataset = PackedDataset(questions, "val", seq_len=16)
    window = dataset[2]
    assert window["labels"][:12].tolist() == [-100] * 12
    assert window["labels"][12:].tolist() == window["input_ids"][12:].tolist()
    assert not dataset.shuffled
    with pytest.raises(ConfigError, match=r"windows of .* have 16 tokens: set data\.seq_len to"):
        PackedDataset(questions, "val", seq_len=32)


def test_several_windows_are_those_one_by_one(questions: Path, tokens: Path) -> None:
    for folder in (questions, tokens):
        dataset = PackedDataset(folder, "train", seq_len=16)
        numbers = [5, 6, 7, 2, 1, 9, 10]
        for several, number in zip(dataset.__getitems__(numbers), numbers, strict=True):
            for name, value in dataset[number].items():
                assert torch.equal(several[name], value)


def test_the_held_out_loss_is_that_of_what_is_scored(questions: Path) -> None:
    dataset = PackedDataset(questions, "val", seq_len=16)
    model = tiny_dense("llama", vocab_size=dataset.meta.vocab_size).eval()
    found = held_out_loss(model, dataset, batch_size=3, windows=[0, 1, 4, 5])
    batch = {
        name: torch.stack([dataset[window][name] for window in (0, 1, 4, 5)])
        for name in ("input_ids", "labels")
    }
    with torch.no_grad():
        expected = model(**batch).loss.item()  # Transformers' own, which leaves −100 out
    assert found.nats_per_token == pytest.approx(expected, rel=1e-5)
    assert found.tokens == 4 * 4
    assert sum(document.tokens for document in found.documents) == 16


def test_stored_order_is_training_order() -> None:
    plan = BatchPlan(10, 4, 2, 1, 5, seed=3, shuffled=False)
    read = [window for step in range(5) for window in WindowBatches(plan).step_windows(step)]
    assert read == [*range(10), *range(10)]


def test_meta_says_it_and_text_does_not(questions: Path, tokens: Path) -> None:
    assert TokenMeta.load(questions).windows == Windows(16, 12, shuffled=False)
    assert TokenMeta.load(tokens).windows is None
    assert '"windows"' not in (tokens / "meta.json").read_text()
    meta = TokenMeta.load(questions)
    dataclasses.replace(meta, windows=Windows(16, unscored=16)).save(questions)
    with pytest.raises(DataError, match="windows has 16 tokens, all of them unscored"):
        PackedDataset(questions, "val", seq_len=16)
