"""A disk that is read-only for real: a file system of its own, in a user namespace."""

import os
import subprocess
import sys

import pytest
import yaml

from support.launch import SOURCE

IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'mount -t tmpfs -o ro none "$1"'


def test_a_read_only_disk_is_one_line(make_config, tmp_path):
    disk, file = tmp_path / "disk", tmp_path / "run.yaml"
    disk.mkdir()
    try:
        tried = subprocess.run([*IN_A_NAMESPACE, MOUNT, "sh", str(disk)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if tried.returncode:
        pytest.skip("this system lets no user mount a file system")
    config = make_config(run__output_dir=str(disk / "run"))
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = f'{MOUNT} && exec "$2" -m versatileffn.cli.main train "$3"'
    result = subprocess.run(
        [*IN_A_NAMESPACE, command, "sh", str(disk), sys.executable, str(file)],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == (
        f"error: {disk / 'run'} can't be written (Read-only file system): choose another output\n"
    )
