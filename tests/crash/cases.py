"""The commands whose crash points are enumerated, on inputs that take tenths of seconds."""

import email
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crash.disk import FOLDER, Tree

VERB = "versatileffn.cli.main:main"
TIMES = {
    "created", "seconds", "seconds_last_session", "seconds_per_step", "this_session",
    "cpu_seconds", "tokens_per_second", "requests_per_second", "eval_runtime",
    "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time", "resumed",
    "run_id", "execution",
}  # fmt: skip
"""JSON keys that differ between any two runs, or tell that there was an interruption."""
DIGITS = 6
"""Of a log-likelihood, whichever items are scored beside it."""


def in_two_tasks() -> None:
    """The verb, on a corpus this small divided as only large ones are."""
    from versatileffn.cli import main
    from versatileffn.data import corpus

    corpus.TASK_BYTES = 20_000
    main.main()


def with_any_text() -> None:
    """The verb, on a text that a model of one training step can't know."""
    from versatileffn.analysis import calibration
    from versatileffn.cli import main

    calibration.check_text = lambda *_: None
    main.main()


def nothing_lost(before: Tree, left: Tree, output: str) -> str | None:
    """No complaint: for verbs that keep no progress."""


@dataclass(frozen=True)
class Case:
    """One command.

    Args:
        name: for the table.
        command: arguments of `versatileffn`; relative paths are below the root.
        before: commands that make what is there at first.
        output: what must be whole at every moment, or not there: the old one or the new one.
        finished: what the command says, with exit code 1, where its output is there already.
        unstable: files, as a pattern, that hold times and need only be there.
        rounds: numbers in JSON depend, by rounding, on what was done before an interruption, and
            the lines of a file stand in the order in which they were done.
        lost: a complaint about a state, given the disk at the point, what the crash left of it,
            and what the command run again printed.
        elsewhere: points inside these paths, as a pattern, are another case's: the command does
            there what that case's does.
        needs: a module without which the case is left out.
        function: what the arguments are for, as `module:function`.
    """

    name: str
    command: list[str]
    before: tuple[list[str], ...] = ()
    output: str | None = None
    finished: str | None = None
    unstable: str = "^$"
    rounds: bool = False
    lost: Callable[[Tree, Tree, str], str | None] = nothing_lost
    elsewhere: str = "(?!)"
    needs: str = "torch"
    function: str = VERB

    def essence(self, tree: Tree, blobs: dict[str, bytes]) -> dict[str, Any]:
        """What must be equal, by path: everything but locks and times."""
        found: dict[str, Any] = {}
        for path, (kind, content) in tree.items():
            if Path(path).name == ".lock":
                continue
            if kind == FOLDER:
                found[path] = FOLDER
            elif re.search(self.unstable, path):
                found[path] = "there"
            elif path.endswith((".json", ".jsonl")):
                found[path] = without_times(blobs[content], DIGITS if self.rounds else None)
                if self.rounds and isinstance(found[path], list):
                    found[path] = sorted(found[path], key=str)
            elif re.search(r"/shard-[^/]*\.safetensors$", path):
                found[path] = tensors(blobs[content])
            else:
                found[path] = content
        return found


def tensors(blob: bytes) -> Any:
    """What a safetensors file holds, in whatever order: that of a share depends on when it was
    loaded."""
    try:
        size = int.from_bytes(blob[:8], "little")
        head, data = json.loads(blob[8 : 8 + size]), blob[8 + size :]
        about = head.pop("__metadata__", None)
        return about, {
            name: (one["dtype"], one["shape"], _sha256(data[slice(*one["data_offsets"])]))
            for name, one in head.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return blob  # torn


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def without_times(text: bytes, digits: int | None = None) -> Any:
    """The JSON value, or the list of a JSONL file's values, without `TIMES`.

    Args:
        text: of the file.
        digits: of a number that are looked at; None: all.
    """

    without = TIMES | {"crc32"} if digits else TIMES

    def strip(value: Any) -> Any:
        if isinstance(value, float) and digits:
            return f"{value:.{digits}g}"
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in without}
        return [strip(v) for v in value] if isinstance(value, list) else value

    try:
        return strip(json.loads(text))
    except ValueError:
        pass
    try:
        return [strip(json.loads(line)) for line in text.splitlines()]
    except ValueError:
        return text  # torn


def checkpoints(tree: Tree, folder: str = "run/checkpoints") -> dict[int, Tree]:
    """Step -> files, of the folders that carry a checkpoint's final name."""
    found: dict[int, Tree] = {}
    for path, node in tree.items():
        match = re.match(rf"{folder}/checkpoint-(\d+)(/.*)?$", path)
        if match:
            found.setdefault(int(match[1]), {})[match[2] or ""] = node
    return found


def training_lost(before: Tree, left: Tree, output: str) -> str | None:
    """Whether whole checkpoints are there, and were used.

    At most the newest may be lost, while it is being made durable.
    """
    there, still = checkpoints(before), checkpoints(left)
    whole = [step for step, files in still.items() if files == there.get(step)]
    older = sorted(there)[:-1]
    if older and not [step for step in whole if step >= older[-1]]:
        return f"checkpoint-{older[-1]} is lost, of {sorted(there)}"
    resumed = re.search(r"resumed after step (\d+)", output)
    used = int(resumed[1]) if resumed else 0
    if whole and used < max(whole) and "finished already" not in output:
        return f"checkpoint-{max(whole)} is whole, and the run went on from step {used}"
    return None


def write_inputs(folder: Path) -> None:
    """Texts and configurations that the cases read."""
    (folder / "texts").mkdir(parents=True)
    sources = sorted(Path(email.__file__).parent.glob("[a-h]*.py"))
    for part in range(2):
        lines = [json.dumps({"text": path.read_text()}) for path in sources[part::2]]
        (folder / "texts" / f"{part}.jsonl").write_text("\n".join(lines))
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    run = {
        "output_dir": "run",
        "max_steps": 7,
        "tokens_per_batch": 256,
        "per_device_train_batch_size": 8,
        "eval_steps": 3,
        "eval_windows": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": [],
    }
    ffn = {"variant": "versatile", "num_experts": 4, "reuse_gains": "learned"}
    config = {
        "model": {"architecture": sizes, "ffn": ffn},
        "data": {"tokens": str(folder / "tokens"), "seq_len": 32},
        "optim": {"learning_rate": 5e-3},
        "run": run,
    }
    dense = {
        **config,
        "model": {"architecture": sizes},
        "run": {**run, "max_steps": 1, "save_steps": 1, "output_dir": str(folder / "dense")},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    (folder / "dense.yaml").write_text(yaml.safe_dump(dense))


def input_commands(folder: Path) -> list[list[str]]:
    """What makes the tokens and the dense model that other cases read."""
    return [
        ["tokenize", str(folder / "texts"), "--out", str(folder / "tokens"), *_SMALL],
        ["train", str(folder / "dense.yaml")],
    ]


_SMALL = ["--vocab-size", "300", "--val-documents", "2"]


def all_cases(folder: Path) -> list[Case]:
    """The cases, reading inputs from `folder`."""
    texts, model = str(folder / "texts"), str(folder / "dense" / "model")
    tokenize = ["tokenize", texts, "--out", "tokens", *_SMALL]
    other = ["tokenize", texts, "--out", "tokens", "--vocab-size", "310", "--val-documents", "1"]
    train = ["train", str(folder / "train.yaml")]
    upcycle = ["upcycle", model, "up", "--gains", "learned"]
    export = ["export", "up", "out"]
    evaluate = ["evaluate", model, "--tasks", "sciq,arc_easy", "--limit", "2", "--out", "scores"]
    calibrate = ["calibrate", "up", f"{texts}/0.jsonl", "--points", "2", "--limit", "2"]
    analyze = ["analyze", "loops", "up", f"{texts}/0.jsonl", "--limit", "2", "--out", "seen"]
    seen = ["analyze", "tokens", *analyze[2:]]
    perplexity = ["perplexity", model, f"{texts}/0.jsonl", "--limit", "1", "--json", "p.json"]
    of_checkpoint = r"checkpoints/.*/(training_args.bin|contents.json)$"
    return [
        Case("tokenize", tokenize, (), "tokens", finished="already exists"),
        Case("tokenize --overwrite", [*tokenize, "--overwrite"], (other,), "tokens"),
        Case("tokenize --workers 2", [*tokenize, "--workers", "2"], (), "tokens",
             finished="already exists", function="crash.cases:in_two_tasks"),
        Case("train", train, (), "run/model", unstable=of_checkpoint, lost=training_lost),
        Case("train, extended", [*train, "--set", "run.schedule_steps=4"],
             ([*train, "--set", "run.max_steps=4"],), "run/model",
             unstable=of_checkpoint, lost=training_lost),
        Case("train, in shares", [*train, "--set", "parallel.strategy=fsdp2"], (), "run/model",
             unstable=of_checkpoint, lost=training_lost),
        Case("upcycle", upcycle, (), "up", finished="already exists"),
        Case("upcycle --overwrite", [*upcycle, "--overwrite"], (["upcycle", model, "up", "--gains",
             "fixed"],), "up"),
        Case("export", export, (upcycle,), "out", finished="already exists"),
        Case("export --overwrite", [*export, "--overwrite"],
             ([*upcycle[:-1], "fixed"], export, [*upcycle, "--overwrite"]), "out"),
        Case("evaluate", evaluate, rounds=True, needs="olmo_eval"),
        Case("calibrate", calibrate, (upcycle,), function="crash.cases:with_any_text"),
        Case("analyze", analyze, (upcycle,), "seen", finished="already exists"),
        Case("analyze --overwrite", [*analyze, "--overwrite"], (upcycle, seen), "seen"),
        Case("perplexity --json", perplexity, (perplexity,), "p.json"),
        Case("reproduce", ["reproduce", "--scale", "smoke", "--arms", "versatile-learned",
                           "--corpus", texts, "--out", "out"],
             unstable=rf"{of_checkpoint}|report\.(md|html)$|\.png$",
             elsewhere=r"/train/run/|/\.tokens\.partial-\w+/"),
    ]  # fmt: skip
