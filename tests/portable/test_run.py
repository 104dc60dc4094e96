"""`python -m versatileffn.run TOOL`: another program's own command, with our models known to it."""

import os
import subprocess
import sys
from pathlib import Path

import versatileffn as vf
from support.models import make_model


def run_tool(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    source = str(Path(vf.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "versatileffn.run", *words],
        env=environment, cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


def test_a_tool_that_loads_by_name_knows_our_models(tmp_path):
    make_model(variant="versatile").save_pretrained(tmp_path / "model")
    (tmp_path / "own_tool.py").write_text(
        "import sys\n"
        "from transformers import AutoConfig\n"
        "def main():\n"
        "    print(sys.argv[0], type(AutoConfig.from_pretrained(sys.argv[1])).__name__)\n"
        "    return 3\n"
    )
    info = tmp_path / "own_tool-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-tool\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nown-tool = own_tool:main\n")
    done = run_tool("own-tool", "model", cwd=tmp_path)
    assert done.stdout.split() == ["own-tool", "VersatileLlamaConfig"], done.stderr[-2000:]
    assert done.returncode == 3


def test_a_tool_that_is_not_installed_is_named(tmp_path):
    done = run_tool("no-such-tool", cwd=tmp_path)
    assert done.returncode == 1
    assert "has a program called 'no-such-tool'" in done.stderr
    assert done.stderr.count("\n") == 1
