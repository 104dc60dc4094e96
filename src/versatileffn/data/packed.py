"""Token shards as fixed-length windows that cross documents and files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from versatileffn.data.meta import SplitMeta, TokenMeta
from versatileffn.data.repetition import repeats
from versatileffn.errors import ConfigError, DataError

UNSCORED = -100
"""The label that Transformers' losses leave out."""


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """One split of a token folder, cut into windows of `seq_len` tokens.

    The shards, in the order of their names, form one stream of tokens; window i holds the tokens
    [i·seq_len, (i+1)·seq_len) of it. Windows never overlap; the last, incomplete one is dropped.
    Shards are memory-mapped, so any size fits.

    Attributes:
        unscored: how many tokens of a window, from its first, no loss counts.
        shuffled: training draws an order of the windows instead of taking them as stored.

    Args:
        folder: a token folder, as `versatileffn tokenize` writes it.
        split: "train" or "val".
        seq_len: tokens per window.
        repetition_filter: windows that repeat themselves, see `repeats`, are read but not scored.

    Raises:
        ConfigError: seq_len is below 2 (one token has nothing to predict), or the folder's
            windows have another length.
        DataError: the folder is missing, half-written or damaged, lacks the split, or the split
            is shorter than one window.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        seq_len: int = 256,
        repetition_filter: bool = False,
    ) -> None:
        if seq_len < 2:
            raise ConfigError(f"seq_len={seq_len} must be at least 2 tokens: one predicts the next")
        self.folder = Path(folder)
        self.split = split
        self.seq_len = seq_len
        self.repetition_filter = repetition_filter
        self.meta = TokenMeta.load(self.folder)
        if split not in self.meta.splits:
            raise DataError(
                f"{self.folder}: no split {split!r}, only {sorted(self.meta.splits)}; tokenize "
                "again with --val-fraction to hold documents out"
            )
        windows = self.meta.windows
        if windows is not None and windows.tokens != seq_len:
            raise ConfigError(
                f"seq_len={seq_len}, but the windows of {self.folder} have {windows.tokens} "
                "tokens: set data.seq_len to that"
            )
        self.unscored = 1 if windows is None else windows.unscored
        self.shuffled = windows is None or windows.shuffled
        self.dtype = np.dtype("<u2" if self.meta.token_bytes == 2 else "<u4")
        self.files = [self.folder / name for name in self.meta.shards(split)]
        sizes = [self._tokens_in(path) for path in self.files]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._check()
        self._shards: list[np.ndarray] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens in the split, those of the dropped last window included."""
        return int(self.starts[-1])

    @property
    def size(self) -> SplitMeta:
        """Documents, tokens and bytes of this split."""
        return self.meta.splits[self.split]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The stream's tokens [start, stop), int64, whichever shards they lie in.

        Raises:
            DataError: a token lies outside the vocabulary.
        """
        if self._shards is None:
            self._shards = [np.memmap(path, self.dtype, mode="r") for path in self.files]
        parts = [np.empty(0, self.dtype)]
        first = start
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            offset = int(self.starts[shard])
            end = min(stop, int(self.starts[shard + 1]))
            parts.append(self._shards[shard][start - offset : end - offset])
            start, shard = end, shard + 1
        tokens = np.concatenate(parts).astype(np.int64)
        if tokens.max(initial=0) >= self.meta.vocab_size:
            raise DataError(
                f"{self.folder / self.split}: token {tokens.max()} among tokens {first}-{stop} "
                f"lies outside the vocabulary of {self.meta.vocab_size}; the shards are damaged or "
                "another tokenizer's, tokenize again"
            )
        return tokens

    def __len__(self) -> int:
        return self.num_tokens // self.seq_len

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Window `index`: input_ids and labels, int64 of shape (seq_len,).

        The labels are the same tensor, unless tokens may be unscored: −100.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return self._windows(int(index) % len(self), 1)[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Several windows, for a DataLoader; those that lie side by side are read at once."""
        numbers = np.asarray(indices)
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        runs = np.split(numbers, breaks)
        return [window for run in runs for window in self._windows(int(run[0]), len(run))]

    def _windows(self, first: int, count: int) -> list[dict[str, torch.Tensor]]:
        """Windows first … first + count − 1."""
        start = first * self.seq_len
        tokens = self.tokens(start, start + count * self.seq_len)
        ids_NT = torch.from_numpy(tokens).view(count, self.seq_len)
        labels_NT = ids_NT
        if self.unscored > 1:
            labels_NT = ids_NT.clone()
            labels_NT[:, : self.unscored] = UNSCORED
        if self.repetition_filter:
            repeated_N1 = torch.from_numpy(repeats(ids_NT.numpy()))[:, None]
            labels_NT = labels_NT.masked_fill(repeated_N1, UNSCORED)
        ids = list(ids_NT)
        labels = ids if labels_NT is ids_NT else list(labels_NT)
        return [{"input_ids": i_T, "labels": l_T} for i_T, l_T in zip(ids, labels, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Without the open shards: a pickled memory map would carry all its tokens."""
        return self.__dict__ | {"_shards": None}

    def _tokens_in(self, path: Path) -> int:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror}); tokenize again") from error
        count, rest = divmod(size, self.dtype.itemsize)
        if rest or not count:
            raise DataError(
                f"{path}: {size} bytes aren't one or more whole {self.dtype.itemsize}-byte tokens; "
                "the file is damaged, tokenize again"
            )
        return count

    def _check(self) -> None:
        if self.num_tokens != self.size.tokens:
            raise DataError(
                f"{self.folder / self.split}: {self.num_tokens} tokens, but meta.json says "
                f"{self.size.tokens}; shards are missing or damaged, tokenize again"
            )
        if self.num_tokens < self.seq_len:
            raise DataError(
                f"{self.folder / self.split}: {self.num_tokens} tokens are fewer than one sequence "
                f"of {self.seq_len}; lower seq_len or tokenize more text"
            )
