"""How learning rate and batch were chosen: on windows that nothing else reads."""

import dataclasses
import json
import statistics
from pathlib import Path

import pytest

from versatileffn.data.order import window_order
from versatileffn.errors import ConfigError
from versatileffn.reproduce import sweep as module
from versatileffn.reproduce.protocol import protocol
from versatileffn.reproduce.sweep import (
    SEEDS,
    WINDOWS,
    Candidate,
    candidates,
    sweep,
    unread_windows,
)

ROOT = Path(__file__).parents[2]
SMOKE = protocol("smoke")
SOME = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(3000))


def test_it_chooses_by_windows_that_the_base_does_not_read() -> None:
    scale = protocol("tiny")
    read = set(window_order(14_000, SEEDS[0], 0)[: scale.base_tokens // scale.seq_len].tolist())
    chosen = unread_windows(scale, 14_000, SEEDS[0])
    assert len(set(chosen)) == WINDOWS
    assert not read & set(chosen)
    with pytest.raises(ConfigError, match="which leaves no"):
        unread_windows(scale, 2800, SEEDS[0])


def test_the_scale_is_what_the_committed_sweep_chose() -> None:
    record = json.loads((ROOT / "results/tiny-sweep.json").read_text())
    scale = protocol("tiny")
    tried = [Candidate(each["learning_rate"], each["batch_tokens"]) for each in record["tried"]]
    assert tried == list(candidates())
    assert (record["base_tokens"], record["seeds"]) == (scale.base_tokens, list(SEEDS))
    best = min(record["tried"], key=lambda each: statistics.fmean(each["nats"]))
    assert best == record["chosen"]
    assert (scale.learning_rate, scale.batch_tokens) == (
        best["learning_rate"],
        best["batch_tokens"],
    )


def test_it_has_seeds_of_its_own() -> None:
    assert min(SEEDS) >= 100  # results are reported with seeds 0, 1, …


def test_the_lowest_mean_wins_and_all_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus.txt").write_text(SOME)
    (tmp_path / "other.txt").write_text("some other text, held out " * 40)
    monkeypatch.setattr(module, "WINDOWS", 8)
    rates = [Candidate(1e-2, 256), Candidate(1e-6, 256)]
    monkeypatch.setattr(module, "candidates", lambda: iter(rates))
    short = dataclasses.replace(SMOKE, base_tokens=2048)
    record = sweep(short, tmp_path / "work", corpus=str(tmp_path))
    losses = [tried["mean_nats"] for tried in record["tried"]]
    assert losses[0] < losses[1] - 0.2
    assert record["chosen"]["learning_rate"] == 1e-2
    assert [len(tried["nats"]) for tried in record["tried"]] == [len(SEEDS)] * 2
