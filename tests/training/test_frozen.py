"""Weights that stay as they are; windows that are read in stored order."""

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.conftest import write_tokens
from versatileffn.data.meta import TokenMeta, Windows
from versatileffn.data.packed import PackedDataset
from versatileffn.errors import ConfigError
from versatileffn.training.config import TrainConfig
from versatileffn.training.init import build_model, model_config
from versatileffn.training.run import train


def test_frozen_weights_stay_and_the_others_learn(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(optim__frozen=["embed_tokens", r"layers\.0\..*norm"])
    run = train(config)
    ours = load_file(run / "model" / "model.safetensors")
    meta = TokenMeta.load(config.data.tokens)
    section = config.model
    planned = model_config(section, meta.vocab_size, meta.eos_token_id, config.data.seq_len)
    start = build_model(section, planned, config.run.seed).state_dict()
    for name, weight in ours.items():
        frozen = "embed_tokens" in name or ("layers.0." in name and "norm" in name)
        assert torch.equal(weight, start[name]) == frozen, name


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("embedding", "is found in no parameter's name, such as"), ("(", "is no regular expression")],
)
def test_a_pattern_for_nothing_is_refused(
    pattern: str, message: str, make_config: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make_config(optim__frozen=[pattern]))


def test_questions_are_trained_on_in_stored_order(
    tmp_path: Path, make_config: Callable[..., TrainConfig]
) -> None:
    """Checksums of what each step was fed, against the windows as they are stored."""
    folder = write_tokens(tmp_path / "questions")
    meta = TokenMeta.load(folder)
    windows = Windows(32, unscored=20, shuffled=False)
    dataclasses.replace(meta, windows=windows).save(folder)
    run = train(
        make_config(
            data__tokens=str(folder), run__logging_steps=1, run__per_device_train_batch_size=8
        )
    )
    data = PackedDataset(folder, "train", seq_len=32)
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    fed = [int(entry["tokens_crc32"]) for entry in entries if "tokens_crc32" in entry]
    for step, found in enumerate(fed):
        ids = torch.stack([data[8 * step + place]["input_ids"] for place in range(8)])
        assert found == zlib.crc32(ids.numpy().tobytes())
    assert len(fed) == 6
