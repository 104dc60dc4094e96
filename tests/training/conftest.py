"""A tiny token folder with learnable structure, and run configurations over it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from support import threads
from versatileffn.data.meta import SplitMeta, TokenMeta
from versatileffn.data.tokenizers import save_tokenizer
from versatileffn.training.config import TrainConfig
from versatileffn.workspace.manifest import digests

VOCAB = 64
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_tokens(folder: Path, train: int = 20_000, val: int = 1_600, vocab: int = VOCAB) -> Path:
    """A token folder whose tokens walk in short steps, so that a model has something to learn."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (folder / split).mkdir(parents=True)
        walk = np.cumsum(rng.choice([1, 1, 1, 2, 5], size=count)) % vocab
        walk.astype("<u2").tofile(folder / split / "000.ds")
    words = {f"w{i}": i for i in range(vocab - 1)} | {"<|end|>": vocab - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    tokenizer_meta = save_tokenizer(fast, folder, folder / "new")
    TokenMeta(
        tokenizer=tokenizer_meta,
        splits={"train": SplitMeta(1, train, 3 * train), "val": SplitMeta(1, val, 3 * val)},
        source="made for tests",
        seed=0,
        token_bytes=2,
        settings={},
        versions={},
        files=digests(folder),
    ).save(folder)
    return folder


one_thread = pytest.fixture(autouse=True)(threads.one_thread)


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def make_config(tokens: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A function from `section__key=value` to a configuration."""

    def make(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "model": {"architecture": TINY},
            "data": {"tokens": str(tokens), "seq_len": 32},
            "optim": {"learning_rate": 1e-2},
            "run": {
                "output_dir": str(tmp_path / "run"),
                "max_steps": 6,
                "tokens_per_batch": 256,
                "per_device_train_batch_size": 4,
                "eval_steps": 3,
                "eval_windows": 10,
                "save_steps": 2,
                "logging_steps": 2,
                "use_cpu": True,
                "report_to": [],
            },
        }
        for key, value in changes.items():
            section, name = key.split("__")
            values[section][name] = value
        return TrainConfig.model_validate(values)

    return make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ranks", type=int, default=0, help="processes of tests/training/test_parallel.py"
    )


def ranks(config: pytest.Config) -> int:
    """What `--ranks` says; 0 where the option isn't known, as when all tests are run."""
    return config.getoption("--ranks", default=0)
