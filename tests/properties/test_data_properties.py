"""Orders are permutations, windows tile the stream, splits never share a text, text comes back."""

import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from versatileffn.data.default_corpus import standard_library
from versatileffn.data.meta import SplitMeta, TokenizerMeta, TokenMeta
from versatileffn.data.order import window_order
from versatileffn.data.packed import PackedDataset
from versatileffn.data.split import document_key, split_of, val_threshold
from versatileffn.data.tokenizers import train_bpe
from versatileffn.errors import ConfigError, DataError
from versatileffn.workspace.manifest import digests

SEEDS = st.integers(0, 2**63)
EOS = 0


@given(st.integers(0, 500), SEEDS, st.integers(0, 1000))
def test_order_is_a_permutation_and_pure(num_windows: int, seed: int, epoch: int) -> None:
    order = window_order(num_windows, seed, epoch)
    assert sorted(order.tolist()) == list(range(num_windows))
    assert np.array_equal(order, window_order(num_windows, seed, epoch))


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(window_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_window_visits_every_place() -> None:
    places = np.array([window_order(5, 0, epoch) for epoch in range(3000)])
    counts = np.array([[np.sum(places[:, p] == w) for p in range(5)] for w in range(5)])
    assert abs(counts - 600).max() < 120  # five standard deviations


def test_order_refuses_negative_arguments() -> None:
    for arguments in ((-1, 0, 0), (1, -1, 0), (1, 0, -1)):
        with pytest.raises(ConfigError, match="must not be negative"):
            window_order(*arguments)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 999), max_size=20), min_size=1, max_size=12),
    st.data(),
    st.integers(2, 30),
)
def test_windows_tile_the_documents(
    documents: list[list[int]], data: st.DataObject, seq_len: int
) -> None:
    ends = sorted(data.draw(st.sets(st.integers(1, len(documents)), max_size=4)) | {len(documents)})
    stream = [token for doc in documents for token in (*doc, EOS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_token_folder(folder, documents, ends)
        if len(stream) < seq_len:
            with pytest.raises(DataError, match="fewer than one sequence"):
                PackedDataset(folder, "train", seq_len)
            return
        dataset = PackedDataset(folder, "train", seq_len)
        windows = [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]
        assert dataset.tokens(0, dataset.num_tokens).tolist() == stream
    assert {len(window) for window in windows} == {seq_len}
    tiled = list(chain.from_iterable(windows))
    assert tiled == stream[: len(tiled)]
    assert 0 <= len(stream) - len(tiled) < seq_len


def write_token_folder(folder: Path, documents: list[list[int]], ends: list[int]) -> None:
    """Documents 0 … ends[0]-1 in the first shard, and so on."""
    (folder / "train").mkdir()
    start = total = 0
    for shard, end in enumerate(ends):
        tokens = [token for doc in documents[start:end] for token in (*doc, EOS)]
        np.array(tokens, dtype="<u2").tofile(folder / "train" / f"{shard:05d}.ds")
        start, total = end, total + len(tokens)
    TokenMeta(
        tokenizer=TokenizerMeta("tokenizer", "0" * 64, 1000, EOS),
        splits={"train": SplitMeta(len(documents), total, total)},
        source="drawn",
        seed=0,
        token_bytes=2,
        settings={},
        versions={},
        files=digests(folder),
    ).save(folder)


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=30), SEEDS, st.integers(1, 30))
def test_split_is_by_text(texts: list[str], seed: int, wanted: int) -> None:
    keys = np.array([document_key(text, seed) for text in texts], dtype=np.uint64)
    try:
        threshold = val_threshold(keys, 0.0, wanted, "drawn")
    except DataError:
        assert len(set(texts)) == 1 or wanted >= len(texts)
        return
    sides = [split_of(text, seed, threshold) for text in texts]
    held_out = {text for text, side in zip(texts, sides, strict=True) if side == "val"}
    assert held_out
    assert held_out < set(texts)
    assert all(
        (text in held_out) == (side == "val") for text, side in zip(texts, sides, strict=True)
    )
    if sides.count("val") < wanted:  # only when all but one text is held out already
        assert len(held_out) == len(set(texts)) - 1
    other = val_threshold(keys[::-1], 0.0, wanted, "drawn")
    assert other == threshold


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(DataError, match="isn't valid Unicode"):
        document_key("bad \ud800 text", 0)


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe([(standard_library() / "argparse.py").read_text(encoding="utf-8")], 600)


@settings(deadline=None)
@given(text=st.text())
def test_any_text_comes_back(bpe: PreTrainedTokenizerFast, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert max(ids, default=0) < 600
