"""The release's filter in training: what repeats itself teaches nothing, and the log says it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from versatileffn.data.meta import TokenMeta
from versatileffn.data.packed import PackedDataset
from versatileffn.data.repetition import repeats
from versatileffn.training.batches import WindowBatches, plan_batches
from versatileffn.training.run import train
from versatileffn.workspace.manifest import sha256


@pytest.fixture
def half_repeated(tokens, tmp_path) -> Path:
    """The shared tokens, every other stretch of which is one token again and again."""
    folder = tmp_path / "tokens"
    shutil.copytree(tokens, folder)
    shard = folder / "train" / "000.ds"
    stream = np.fromfile(shard, "<u2")
    stream[np.arange(len(stream)) // 512 % 2 == 1] = 9
    stream.tofile(shard)
    meta = TokenMeta.load(folder)
    files = meta.files | {"train/000.ds": sha256(shard)}
    dataclasses.replace(meta, files=files).save(folder)
    return folder


def test_it_teaches_nothing_and_is_told(make_config, half_repeated):
    """A step of such windows alone has a loss of 0, not 0 / 0; the others' isn't diluted."""
    config = make_config(
        data__tokens=str(half_repeated), data__seq_len=64, data__repetition_filter=True,
        run__tokens_per_batch=128, run__per_device_train_batch_size=1, run__logging_steps=1,
        run__max_steps=10, run__eval_steps=10, run__save_steps=10,
    )  # fmt: skip
    data = PackedDataset(half_repeated, "train", 64)
    plan = plan_batches(config, len(data), 1)
    marks = repeats(data.tokens(0, len(data) * 64).reshape(-1, 64))
    shares = [float(marks[WindowBatches(plan).step_windows(step)].mean()) for step in range(10)]
    assert {0.0, 0.5, 1.0} <= set(shares)
    log = [json.loads(line) for line in (train(config) / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if "loss" in entry]
    assert [entry["repeated_windows"] for entry in steps] == shares
    for entry, share in zip(steps, shares, strict=True):
        assert (entry["loss"] == 0) == (share == 1)
        assert share == 1 or entry["loss"] > 2.5  # the repeated token would be learned at once
