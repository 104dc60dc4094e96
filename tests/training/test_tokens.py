"""Tokens that aren't what was tokenized are refused, at the start and on resuming."""

import shutil

import numpy as np
import pytest

from versatileffn.data.meta import TokenMeta
from versatileffn.errors import DataError
from versatileffn.training import tokens as tokens_module
from versatileffn.training.run import train
from versatileffn.training.tokens import verify_tokens


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("content", [0, 1], ids=["zeros", "ones"])
def test_a_shard_of_the_same_size_is_refused_on_resuming(
    make_config, tokens, tmp_path, split, content
):
    folder = tmp_path / "tokens"
    shutil.copytree(tokens, folder)
    config = make_config(data__tokens=str(folder))
    run = train(config)
    (run / "run.json").unlink()
    shard = folder / split / "000.ds"
    np.full(shard.stat().st_size // 2, content, dtype="<u2").tofile(shard)
    with pytest.raises(DataError, match=rf"{split}/000\.ds isn't what was written: .*tokenize"):
        train(config)


def test_one_token_is_enough_and_a_missing_file_too(tokens, tmp_path):
    folder = tmp_path / "tokens"
    shutil.copytree(tokens, folder)
    meta = TokenMeta.load(folder)
    verify_tokens(folder, meta)
    shard = folder / "train" / "000.ds"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train/000\.ds isn't what was written"):
        verify_tokens(folder, meta)
    shard.unlink()
    with pytest.raises(DataError, match=r"train/000\.ds is missing"):
        verify_tokens(folder, meta)


def test_that_much_data_takes_long_is_said(tokens, monkeypatch):
    monkeypatch.setattr(tokens_module, "LARGE", 1)
    said = []
    verify_tokens(tokens, TokenMeta.load(tokens), said.append)
    assert len(said) == 1
    assert "verifying" in said[0]
