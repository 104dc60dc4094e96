"""`tokenize` is killed before it deletes anything; the same command then finishes, with the truth.

It once deleted its records before it wrote their sum. (`python tests/crash` kills it everywhere.) A
process imports everything once and forks for each run, so a crash point costs tenths of a second.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from support import forked as forks
from versatileffn.data import corpus as corpus_module
from versatileffn.data.meta import TokenMeta
from versatileffn.data.tokenize import tokenize_corpus

CHANGES = {"os.remove", "os.rmdir"}
DRIVER = "import sys; sys.path.insert(0, sys.argv[1]); import test_tokenize_kills as t; t.drive()"


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def forked(out: str, die_at: int | None = None) -> int:
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
        tokenize_corpus("corpus", out, vocab_size=300, val_documents=2, overwrite=True)
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)


def drive() -> None:
    """Try every crash point; print how many there were."""
    os.chdir(sys.argv[2])
    corpus_module.TASK_BYTES = 1
    Path("corpus").mkdir()
    for part in range(2):
        lines = [json.dumps({"text": f"text {part} {n} " * (n + 1)}) for n in range(4)]
        Path("corpus", f"{part}.jsonl").write_text("\n".join(lines))
    assert forked("whole") == 0
    point = 0
    while os.WIFSIGNALED(forked("out", point)):
        assert forked("out") == 0, f"crash point {point}: the same command failed"
        assert contents(Path("out")) == contents(Path("whole")), f"crash point {point}"
        assert {p.name for p in Path().iterdir()} == {"corpus", "out", "whole"}, point
        shutil.rmtree("out")
        point += 1
    print(point)


@pytest.mark.timeout(900)
def test_no_kill_falsifies_or_loses_anything(tmp_path: Path) -> None:
    here = Path(__file__).parent
    result = forks.forked(
        "-c", DRIVER, here, tmp_path, environment={"TOKENIZERS_PARALLELISM": "false"}
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 10
    assert TokenMeta.load(tmp_path / "out").splits["val"].documents == 2
