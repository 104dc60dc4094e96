"""`tokenize` is killed before each change to the file system; the same command then finishes.

A process imports everything once and forks for each run, so a crash point costs tenths of a second.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from versatileffn.data import corpus as corpus_module
from versatileffn.data.meta import TokenMeta
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.data.verify import verify_tokens

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
DRIVER = "import sys; sys.path.insert(0, sys.argv[1]); import test_tokenize_kills as t; t.drive()"


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def forked(corpus: Path, out: Path, overwrite: bool, die_at: int | None) -> int:
    """Tokenize in a fork, which dies before its `die_at`-th change; its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    changes = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal changes
        if event in CHANGES:
            if changes == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            changes += 1

    sys.addaudithook(watch)
    try:
        tokenize_corpus(corpus, out, vocab_size=300, val_documents=2, overwrite=overwrite)
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)


def drive() -> None:
    """Try every crash point, with and without an older folder in place; print how many."""
    os.chdir(sys.argv[2])
    corpus_module.TASK_BYTES = 1
    Path("corpus").mkdir()
    for part in range(2):
        lines = [json.dumps({"text": f"text {part} {n} " * (n + 1)}) for n in range(4)]
        Path("corpus", f"{part}.jsonl").write_text("\n".join(lines))
    assert forked(Path("corpus"), Path("whole"), False, None) == 0
    expected = contents(Path("whole"))
    tried = 0
    for older in (False, True):
        point = 0
        while True:
            shutil.rmtree("out", ignore_errors=True)
            if older:
                shutil.copytree("whole", "out")
            status = forked(Path("corpus"), Path("out"), older, point)
            if not os.WIFSIGNALED(status):
                assert status == 0
                break
            if older:
                verify_tokens("out")  # the old one or the new one, at every moment
            again = forked(Path("corpus"), Path("out"), older or Path("out").exists(), None)
            assert again == 0, f"crash point {point}: the same command failed"
            assert contents(Path("out")) == expected, f"crash point {point}"
            assert {p.name for p in Path().iterdir()} == {"corpus", "out", "whole"}, point
            point += 1
        tried += point
    print(tried)


@pytest.mark.timeout(900)
def test_no_kill_falsifies_or_loses_anything(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "src"
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(source), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 50
    assert TokenMeta.load(tmp_path / "out").splits["val"].documents == 2
