"""`python tests/soak --minutes 60`: training that is killed again and again, beside one that isn't.

Two runs of one configuration start together. One is left alone; it is the truth, and the process
whose memory and handles are watched for growth. The other is ended at random moments, by SIGKILL or
SIGTERM, and started again with the same command. When the time is over both are ended by SIGTERM,
the undisturbed one once it is as far as the other.

What must hold is below, in `verdict`, written before any result.
"""

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE.parents[1]), str(ROOT / "src")]

from soak.watch import Watch, after, growth  # noqa: E402
from versatileffn.provenance import source_digest, versions  # noqa: E402

RESULTS = ROOT / "results" / "soak" / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- soak: python tests/soak -->\n", "<!-- end of soak -->\n"
VERB = [sys.executable, "-m", "versatileffn"]
WARM_UP = 300.0
"""Seconds after which a process's memory is held against it."""
MOST_GROWTH = 16.0
"""MiB per hour: what the Trainer's own history and the allocator's arenas may take."""
BETWEEN = (1.0, 90.0)
"""Seconds to the next signal: three times in four from when the run says what it trains, so that it
trains, evaluates or saves; else from its start, while it imports or reads."""
LEFT = {".partial", "rejected-"}
"""In a name: what an interruption leaves, which the next start clears or the last one must."""
CONFIG: dict[str, Any] = {
    "model": {
        "architecture": {
            "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "ffn": {"variant": "versatile", "reuse_gains": "learned"},
    },
    "data": {"seq_len": 64},
    "optim": {"learning_rate": 1e-3},
    "run": {
        "max_steps": 1_000_000, "schedule_steps": 3000, "tokens_per_batch": 512,
        "per_device_train_batch_size": 4, "use_cpu": True, "logging_steps": 10, "save_steps": 20,
        "eval_steps": 100, "eval_windows": 8,
    },
}  # fmt: skip


class Run:
    """One of the two runs: its folder, and its process while there is one.

    Args:
        place: gets the configuration, the run folder, its own folder of temporary files.
        tokens: a token folder.
    """

    def __init__(self, place: Path, tokens: Path) -> None:
        self.place, self.folder = place, place / "run"
        (place / "tmp").mkdir(parents=True)
        config = json.loads(json.dumps(CONFIG))
        config["data"]["tokens"] = str(tokens)
        config["run"]["output_dir"] = str(self.folder)
        (place / "run.yaml").write_text(json.dumps(config))  # JSON is YAML
        self.process: subprocess.Popen[bytes] | None = None
        self.watches: list[Watch] = []
        self.said = 0

    def start(self) -> None:
        """Give the command."""
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "TMPDIR": str(self.place / "tmp"),
            "PYTHONPATH": str(ROOT / "src"),
        }  # fmt: skip
        with (self.place / "output").open("ab") as output:
            self.said = output.tell()
            self.process = subprocess.Popen(
                [*VERB, "train", str(self.place / "run.yaml")],
                env=environment, stdout=output, stderr=output,
            )  # fmt: skip
        self.watches.append(Watch(self.process.pid))

    def end(self, number: int) -> int:
        """Send a signal, and wait; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=300)

    def alive(self) -> bool:
        """Whether the process is still there; looks at it."""
        assert self.process is not None
        self.watches[-1].sample()
        return self.process.poll() is None

    def has_begun(self) -> bool:
        """Whether this session has said what it trains, which it does when all is ready."""
        return b" parameters (" in (self.place / "output").read_bytes()[self.said :]

    def log(self) -> list[str]:
        """Whole lines of its log."""
        path = self.folder / "log.jsonl"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def step(self) -> int:
        """The last step that it logged."""
        log = self.log()
        return json.loads(log[-1])["step"] if log else 0

    def leftovers(self) -> list[str]:
        """Half-written things among its files, and anything among its temporary ones."""
        found = [p for p in self.folder.rglob("*") if any(part in p.name for part in LEFT)]
        found += (self.place / "tmp").rglob("*")
        return sorted(str(path.relative_to(self.place)) for path in found)


def soak(place: Path, tokens: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Run both, and say what was seen."""
    if not tokens.exists():
        write_text(place / "text")
        subprocess.run(
            [*VERB, "tokenize", str(place / "text"), "--vocab-size", "512", "--out", str(tokens)],
            check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    truth, other = (Run(place / name, tokens) for name in ("undisturbed", "disturbed"))
    draw, endings, faults = random.Random(seed), [], []
    truth.start()
    other.start()
    began = time.monotonic()
    while time.monotonic() - began < 60 * minutes:
        wait, trains = draw.uniform(*BETWEEN), draw.random() < 0.75
        until = time.monotonic() + wait
        while time.monotonic() < until:
            if trains and not other.has_begun():
                until = time.monotonic() + wait
            time.sleep(1)
            for run, name in ((truth, "undisturbed"), (other, "disturbed")):
                if not run.alive():
                    faults.append(f"the {name} run ended by itself: {run.process.returncode}")
                    return report(truth, other, endings, faults, time.monotonic() - began)
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])
        code = other.end(number)
        endings.append({"signal": number.name, "code": code, "step": other.step()})
        print(endings[-1], truth.step(), flush=True)
        allowed = {-signal.SIGKILL} if number is signal.SIGKILL else {143, -signal.SIGTERM}
        if code not in allowed:
            faults.append(f"{number.name} ended the run with {code}")
        other.start()
    while other.alive() and other.step() <= endings[-1]["step"]:  # one more session, to the end
        time.sleep(1)
        truth.alive()
    other.end(signal.SIGTERM)
    while truth.alive() and truth.step() < other.step():
        time.sleep(1)
    truth.end(signal.SIGTERM)
    return report(truth, other, endings, faults, time.monotonic() - began)


def report(
    truth: Run, other: Run, endings: list[dict[str, Any]], faults: list[str], seconds: float
) -> dict[str, Any]:
    """What was seen, as numbers."""
    for run in (truth, other):
        if run.process is not None and run.process.poll() is None:
            run.end(signal.SIGKILL)
    log, whole = other.log(), truth.log()
    same = next((n for n, line in enumerate(log) if whole[n : n + 1] != [line]), len(log))
    long = after(truth.watches[0].samples, WARM_UP)
    return {
        "minutes": round(seconds / 60, 1),
        "endings": endings,
        "sigkill": sum(each["signal"] == "SIGKILL" for each in endings),
        "sigterm": sum(each["signal"] == "SIGTERM" for each in endings),
        "steps": other.step(),
        "undisturbed_steps": truth.step(),
        "logged": len(log),
        "logged_alike": same,
        "first_loss": json.loads(log[1])["loss"] if len(log) > 1 else None,
        "last_loss": next((e["loss"] for e in map(json.loads, log[::-1]) if "loss" in e), None),
        "mib_per_hour": growth(long),
        "mib": [round(sample.mib, 1) for sample in (long[:1] + long[-1:])],
        "handles": [min(s.handles for s in long), max(s.handles for s in long)] if long else [],
        "threads": [min(s.threads for s in long), max(s.threads for s in long)] if long else [],
        "leftovers": truth.leftovers() + other.leftovers(),
        "faults": faults,
    }


def verdict(found: dict[str, Any]) -> list[str]:
    """What didn't hold; nothing where all did."""
    wrong = list(found["faults"])
    if not found["endings"] or not found["logged"]:
        wrong.append("nothing was disturbed, or nothing logged")
    if found["logged_alike"] != found["logged"]:
        wrong.append(f"line {found['logged_alike'] + 1} of the log differs from the undisturbed")
    if found["mib_per_hour"] is None or found["mib_per_hour"] > MOST_GROWTH:
        wrong.append(f"memory grows by {found['mib_per_hour']} MiB per hour")
    if not found["handles"] or found["handles"][1] > found["handles"][0] + 8:  # of a save
        wrong.append(f"open handles: {found['handles']}")
    if found["leftovers"]:
        wrong.append(f"left over: {found['leftovers']}")
    return wrong


def write_text(folder: Path) -> None:
    """Documents of words that follow one another by chance."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    folder.mkdir(parents=True)
    for number in range(200):
        text = " ".join(draw.choices(words, k=1500))
        (folder / f"{number:03}.txt").write_text(text)


def paragraph(found: dict[str, Any]) -> str:
    """The result as the page says it."""
    grown, handles = found["mib_per_hour"], found["handles"]
    return (
        f"The last one took {found['minutes']:g} minutes: {found['sigkill']} SIGKILL and "
        f"{found['sigterm']} SIGTERM in {found['steps']:,} steps; {found['logged_alike']:,} of "
        f"{found['logged']:,} logged lines are the undisturbed run's, bit for bit. Memory of the "
        f"undisturbed process grew by {grown:.1f} MiB per hour after its first "
        f"{WARM_UP / 60:g} minutes; it had {handles[0]} to {handles[1]} open handles; "
        f"{len(found['leftovers'])} files were left over "
        "([results.json](../results/soak/results.json)).\n"
    )


def main() -> None:
    """Soak, print what was seen, and say so by the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=Path, help="where tokens are kept for another soak")
    parser.add_argument("--write", action="store_true", help="write results and the page")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        tokens = chosen.tokens or Path(place) / "tokens"
        found = soak(Path(place), tokens, chosen.minutes, chosen.seed)
        for name in ("undisturbed", "disturbed"):
            print((Path(place) / name / "output").read_text()[-2000:])
    wrong = verdict(found)
    found |= {
        "wrong": wrong,
        "command": shlex.join(["python", "tests/soak", *sys.argv[1:]]),
        "seed": chosen.seed,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions("torch", "transformers", "accelerate"),
        "sources_sha256": source_digest(),
    }
    print(json.dumps({key: value for key, value in found.items() if key != "endings"}, indent=2))
    if chosen.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(head + BEGIN + paragraph(found) + END + rest.partition(END)[2])
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
