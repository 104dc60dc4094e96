"""A disk that is full for real: a file system of megabytes in a user namespace of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from versatileffn.data.meta import TokenMeta
from versatileffn.workspace.manifest import damage

SMALL = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNT = 'mount -t tmpfs -o size="$1" none "$2"'
RUN = """
import sys
from versatileffn.data import corpus
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import ResourceError
corpus.TASK_BYTES = 100_000
source, out = sys.argv[1:]
try:
    tokenize_corpus(source, out, vocab_size=257, val_fraction=0)
except ResourceError as error:
    print(error)
"""


def can_mount(folder: Path) -> bool:
    command = [*SMALL, "sh", "-c", MOUNT, "sh", "1m", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def test_full_disk_is_one_line_and_keeps_the_work(tmp_path: Path) -> None:
    disk, source, saved = (tmp_path / name for name in ("disk", "source", "saved"))
    disk.mkdir()
    source.mkdir()
    if not can_mount(disk):
        pytest.skip("this system lets no user mount a file system")
    for number in range(20):  # 2 MB of text: 4 MB of tokens, for the vocabulary is bytes alone
        text = f"{number} " + "".join(chr(97 + at * at % 26) for at in range(100_000))
        (source / f"{number:02d}.txt").write_text(text)
    script = f"""
        {MOUNT}
        python=$3 code=$4 source=$5
        "$python" -c "$code" "$source" "$2/out" || exit 1
        ls "$2"/.out*/new/train/*.ds | wc -l
        mount -o remount,size=64m "$2"
        "$python" -c "$code" "$source" "$2/out" || exit 1
        cp -r "$2/out" "$6"
    """
    inputs = ["2m", disk, sys.executable, RUN, source, saved]
    result = subprocess.run(
        [*SMALL, "sh", "-c", script, "sh", *map(str, inputs)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    error, kept = result.stdout.strip().splitlines()
    assert "the disk is full" in error
    assert "MiB free" in error
    assert "the rest of the tokens takes about" in error
    assert int(kept) > 3
    meta = TokenMeta.load(saved)
    assert meta.splits["train"].documents == 20
    assert not damage(saved, meta.files)
