"""Our models under other people's tools, and what came of it.

    python tests/portable/walk.py --transformers 5.12.0 --transformers 5.23.0 --out docs/tools.json

For each version virtual environments are made under --work (those that are there are used), with
torch, that Transformers and the tools from the package index. Then each tool runs, in a process
without this package where it loads a model by its name, and the outcome is written down; rows of
tools that weren't asked for stay. It takes minutes, most of them pip's; compilers take longer.
"""

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "src")]

from portable import compilers, mergers, quantizers, trainers  # noqa: E402
from portable.cases import models, write_case  # noqa: E402
from portable.environment import Environment  # noqa: E402
from support.terminal import Terminal  # noqa: E402

REQUEST = {"messages": [{"role": "user", "content": "some words"}], "max_tokens": 8}
TASK = """
task: own_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
"""


def load(there: Environment, root: Path) -> str:
    """Transformers' Auto classes: load, compare, save again, load again."""
    done = there.run("python", str(HERE / "elsewhere.py"), str(root))
    if done.returncode:
        return f"fails: {done.stderr.strip().splitlines()[-1]}"
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    largest = max(max(c["difference"], c["after saving again"]) for c in cases.values())
    assert all(c["module"].startswith("transformers_modules.") for c in cases.values())
    return f"works: {len(cases)} models, logits differ by {largest:.2g} at most, same tokens"


def serve_and_chat(there: Environment, model: Path) -> dict[str, str]:
    """`transformers serve`, a request, and `transformers chat` with the same server."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://localhost:{port}"
    words = ["serve", str(model), "--trust-remote-code", "--port", str(port)]
    log = (there.work / "serve.log").open("w")
    server = subprocess.Popen(
        [str(there.bin / "transformers"), *words],
        env=there.variables | {"HF_HUB_OFFLINE": "1"}, cwd=there.work, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        answered, talked = _ask(server, model, address), _chat(there, model, address)
        return {"transformers serve": answered, "transformers chat": talked}
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def _ask(server: subprocess.Popen, model: Path, address: str) -> str:
    for _ in range(120):
        time.sleep(1)
        if server.poll() is not None:
            return "fails: the server ended, see serve.log"
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
            break
        except OSError:
            continue
    asked = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(REQUEST | {"model": str(model)}).encode(),
        {"content-type": "application/json"},
    )
    answer = json.loads(urllib.request.urlopen(asked, timeout=120).read())
    tokens = answer["usage"]["completion_tokens"]
    assert answer["choices"][0]["message"]["role"] == "assistant"
    return f"works: a chat request is answered with {tokens} tokens"


def _chat(there: Environment, model: Path, address: str) -> str:
    program = [str(there.bin / "transformers")]
    words = ["chat", str(model), address, "max_new_tokens=8", "--user", "me"]
    settings = {"PYTHONPATH": "", "HF_HOME": there.variables["HF_HOME"], "COLUMNS": "300"}
    settings["TERM"] = "dumb"  # so that colours don't stand between the letters
    with Terminal(*words, program=program, **settings) as screen:
        screen.wait_for("<me>:")
        screen.say("some words")
        screen.wait_for(f"<{model}>:")
        screen.wait_for("tokens in")  # what it says at the end of a turn
    return "works: a turn is answered in a terminal"


def lm_eval(there: Environment, model: Path, work: Path) -> str:
    """`lm_eval run --model hf` on a task of four questions."""
    documents = [
        {"context": "a text of", "choices": [" some words", " words some"], "label": n % 2}
        for n in range(4)
    ]
    (work / "tasks").mkdir(exist_ok=True)
    (work / "choices.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    (work / "tasks" / "own.yaml").write_text(TASK.format(data=work / "choices.jsonl"))
    done = there.run(
        "lm_eval", "run", "--model", "hf",
        "--model_args", f"pretrained={model},trust_remote_code=True", "--tasks", "own_choices",
        "--include_path", str(work / "tasks"), "--device", "cpu", "--output_path", str(work / "o"),
    )  # fmt: skip
    if done.returncode:
        return f"fails: {done.stderr.strip().splitlines()[-1]}"
    results = json.loads(next((work / "o").rglob("results_*.json")).read_text())["results"]
    accuracy = results["own_choices"]["acc,none"]
    return f"works: 4 questions are scored (accuracy {accuracy:g})"


def by_name(version: str, place: Path) -> list[dict[str, str]]:
    """The tools that load a model by its name, without this package."""
    root = place / "models"
    if not root.is_dir():
        for name, model in models().items():
            write_case(root, name, model)
    wanted = ["torch", f"transformers[serving]=={version}", "accelerate", "lm_eval"]
    there = Environment(place / "venv", place, wanted)
    assert not there.version("versatileffn"), "the package is installed there"
    spoken = root / "learned" / "out"
    outcomes = {"Auto classes": load(there, root)}
    outcomes |= serve_and_chat(there, spoken)
    found = [
        {"tool": tool, "version": version, "outcome": outcome} for tool, outcome in outcomes.items()
    ]
    scored = lm_eval(there, spoken, place)
    name = f"{there.version('lm_eval')}, beside Transformers {version}"
    return [*found, {"tool": "lm_eval run --model hf", "version": name, "outcome": scored}]


TOOLS: dict[str, Callable[[str, Path], list[dict[str, str]]]] = {
    "by-name": by_name,
    "mergers": mergers.walk,
    "compilers": compilers.walk,
    "quantizers": quantizers.walk,
    "trainers": trainers.walk,
}
"""Each takes a version of Transformers and a folder for it, and gives rows of the table."""


def with_new(kept: list[dict[str, str]], new: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows written down before, those of the same tool and version replaced."""
    rows = {(row["tool"], row["version"]): row for row in kept}
    return list((rows | {(row["tool"], row["version"]): row for row in new}).values())


def main() -> None:
    """Walk, and write the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", action="append", required=True, metavar="VERSION")
    parser.add_argument("--tool", action="append", choices=list(TOOLS), help="all, if not given")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write, or to add to")
    parser.add_argument("--work", type=Path, default=Path("runs/tools"))
    options = parser.parse_args()
    new = []
    for version in options.transformers:
        place = options.work.absolute() / version
        place.mkdir(parents=True, exist_ok=True)
        for tool in options.tool or TOOLS:
            new += TOOLS[tool](version, place)
    kept = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else []
    options.out.write_text(json.dumps(with_new(kept, new), indent=2) + "\n", encoding="utf-8")
    for row in new:
        print(f"{row['tool']:24} {row['version']:36} {row['outcome']}")
    sys.exit(any(not row["outcome"].startswith("works") for row in new))


if __name__ == "__main__":
    main()
