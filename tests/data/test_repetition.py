"""Which windows repeat themselves, by the definition spelled out, and what becomes of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from versatileffn.data import repetition
from versatileffn.data.packed import PackedDataset
from versatileffn.data.repetition import repeats


def repeats_slowly(window: list[int]) -> bool:
    """By definition: some piece of 1 … 13 tokens stands there 32 times in a row."""
    return any(
        window[start : start + 32 * period] == window[start : start + period] * 32
        for period in range(1, 14)
        for start in range(len(window) - 32 * period + 1)
    )


@settings(deadline=None)
@given(st.integers(1, 15), st.integers(28, 36), st.integers(0, 60), st.integers(0, 12),
       st.integers(0, 99))  # fmt: skip
def test_it_is_the_definition(period: int, times: int, before: int, rest: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    piece = draw.permutation(50)[:period] + 1000  # of distinct tokens, so no shorter period
    window = [*draw.integers(0, 900, before), *np.tile(piece, times), *piece[: rest % period]]
    window = [int(token) for token in (*window, *draw.integers(0, 900, 20))]
    (found,) = repeats(np.array([window]))
    assert found == (period <= 13 and times >= 32)
    assert found == repeats_slowly(window)


def test_each_window_by_itself() -> None:
    windows = np.arange(4 * 100).reshape(4, 100)
    windows[1, 30:62] = 7
    windows[2, 68:] = windows[3, :31] = 7  # 32 across the boundary, and 31: of one, 32
    assert repeats(windows).tolist() == [False, True, True, False]
    windows[2, 68] = 8
    assert not repeats(windows)[2]


def test_short_windows_never_do() -> None:
    assert repeats(np.zeros((3, 31), int)).tolist() == [False] * 3
    assert repeats(np.zeros((3, 32), int)).tolist() == [True] * 3


def test_what_repeats_is_read_but_not_scored(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repetition, "MIN_TIMES", 4)  # real text repeats itself so often
    kept, filtered = PackedDataset(tokens, "train", 64), PackedDataset(tokens, "train", 64, True)
    windows = filtered.__getitems__(range(len(filtered)))
    marks = [bool((window["labels"] == -100).all()) for window in windows]
    assert marks == repeats(kept.tokens(0, len(kept) * 64).reshape(-1, 64)).tolist()
    assert 0 < sum(marks) < len(marks)
    for number, (window, mark) in enumerate(zip(windows, marks, strict=True)):
        assert torch.equal(window["input_ids"], kept[number]["input_ids"])
        if not mark:
            assert torch.equal(window["labels"], kept[number]["labels"])
        assert torch.equal(window["labels"], filtered[number]["labels"])
    assert not any((kept[number]["labels"] == -100).any() for number in range(len(kept)))
