"""Exported models under other people's tools, in environments that have never had this package.

    python tests/portable/walk.py --transformers 5.12.0 --transformers 5.23.0 --out docs/tools.json

For each version a virtual environment is made under --work (one that is there is used), with torch,
that Transformers and lm_eval from the package index. Then each tool's own command runs, in a
process without this package, and the outcome is written down. It takes minutes, most of them pip's.

Trainers are Python and need the package: --trainers walks PEFT and TRL in one more environment,
which has it (`trainers.py`). Rows of OUT that aren't walked again stay.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "src")]

from portable.cases import models, write_case  # noqa: E402
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


class Environment:
    """A virtual environment with one version of Transformers.

    Args:
        folder: of the environment.
        version: of Transformers.
        work: where processes run.
    """

    def __init__(self, folder: Path, version: str, work: Path) -> None:
        self.bin, self.work = folder / "bin", work
        if not (self.bin / "lm_eval").is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            wanted = ["torch", f"transformers[serving]=={version}", "accelerate", "lm_eval"]
            subprocess.run([str(self.bin / "pip"), "install", "-q", *wanted], check=True)
        names = ("PYTHONPATH", "HF_HUB_OFFLINE", "VIRTUAL_ENV")
        self.variables = {k: v for k, v in os.environ.items() if k not in names} | {
            "HF_HOME": str(work / "hf"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        asked = "import importlib.metadata as m; print(m.version('versatileffn'))"
        assert self.run("python", "-c", asked).returncode, "the package is installed there"

    def run(self, program: str, *words: str, offline: bool = True) -> subprocess.CompletedProcess:
        """A program of the environment, to its end."""
        variables = self.variables | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        return subprocess.run(
            [str(self.bin / program), *words],
            env=variables, cwd=self.work, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def version(self, name: str) -> str:
        """Of an installed package."""
        asked = f"import importlib.metadata as m; print(m.version({name!r}))"
        return self.run("python", "-c", asked).stdout.strip()


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


def walk(version: str, work: Path) -> list[dict[str, str]]:
    """All tools beside one version of Transformers."""
    place = work / version
    root = place / "models"
    if not root.is_dir():
        for name, model in models().items():
            write_case(root, name, model)
    there = Environment(place / "venv", version, place)
    spoken = root / "learned" / "out"
    outcomes = {"Auto classes": load(there, root)}
    outcomes |= serve_and_chat(there, spoken)
    found = [
        {"tool": tool, "version": version, "outcome": outcome} for tool, outcome in outcomes.items()
    ]
    scored = lm_eval(there, spoken, place)
    name = f"{there.version('lm_eval')}, beside Transformers {version}"
    return [*found, {"tool": "lm_eval run --model hf", "version": name, "outcome": scored}]


def trainers(work: Path) -> list[dict[str, str]]:
    """PEFT and TRL, in an environment that has this package."""
    python = work / "trainers" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(work / "trainers")], check=True)
        for wanted in (["torch"], ["trl", "peft", str(HERE.parents[1])]):
            subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
    done = subprocess.run(
        [str(python), str(HERE / "trainers.py")],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
        cwd=work, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    beside = f"beside Transformers {found['versions']['transformers']}"
    return [
        {
            "tool": tool,
            "version": f"{found['versions'][tool.split()[0].lower()]}, {beside}",
            "outcome": outcome,
        }
        for tool, outcome in found["outcomes"].items()
    ]


def main() -> None:
    """Walk, and write the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", action="append", default=[], metavar="VERSION")
    parser.add_argument("--trainers", action="store_true", help="walk PEFT and TRL")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--work", type=Path, default=Path("runs/tools").absolute())
    options = parser.parse_args()
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else []
    rows = [row for version in options.transformers for row in walk(version, options.work)]
    rows += trainers(options.work) if options.trainers else []
    rows = [row for row in kept if not any(_same(row, new) for new in rows)] + rows
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['tool']:24} {row['version']:36} {row['outcome']}")
    sys.exit(any(not row["outcome"].startswith("works") for row in rows))


def _same(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether two rows are of one tool beside one Transformers, or of one trainer."""
    beside = [row["version"].rpartition(" ")[2] for row in (first, second)]
    trained = first["tool"].startswith(("PEFT", "TRL"))
    return first["tool"] == second["tool"] and (trained or beside[0] == beside[1])


if __name__ == "__main__":
    main()
