"""A small real corpus, and its tokens, that the tests of this room share."""

import json
from pathlib import Path

import pytest

from versatileffn.data.default_corpus import source_files, standard_library
from versatileffn.data.tokenize import tokenize_corpus


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--executors", action="store_true", help="whole runs on Slurm and on Ray, too")


@pytest.fixture
def whole_runs(request: pytest.FixtureRequest) -> None:
    """For tests of minutes."""
    if not request.config.getoption("--executors", default=False):
        pytest.skip("a run of minutes: pytest tests/data/test_executors.py --executors")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Forty real documents, two of them alike, some not ASCII."""
    root = standard_library()
    paths = [root / name for name in source_files(root)]
    small = [path.read_text(encoding="utf-8") for path in paths if path.stat().st_size < 6000]
    return [*small[:37], "Grüße aus Köln – 你好, мир 🎈\n", "a copy\n", "a copy\n"]


@pytest.fixture(scope="session")
def corpus_folder(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents as four JSONL files."""
    folder = tmp_path_factory.mktemp("corpus")
    for part in range(4):
        lines = [json.dumps({"text": text}) for text in texts[part::4]]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokens(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token folder of that corpus."""
    folder = tmp_path_factory.mktemp("out") / "tokens"
    tokenize_corpus(corpus_folder, folder, vocab_size=400, val_documents=5)
    return folder
