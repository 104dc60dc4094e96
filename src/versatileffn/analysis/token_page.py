"""One HTML page on which each token of a text has the colour of its loops, or of its real expert.

Legend: T tokens of all sequences together, N num_experts.
"""

import json
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from scipy.stats import spearmanr

from versatileffn.analysis.outcome import Outcome
from versatileffn.analysis.readings import LayerReading, Reading, expert_loads, loops_decided
from versatileffn.analysis.token_texts import token_texts

PAGE_TOKENS = 20_000
"""Tokens; a longer text isn't shown to its end."""


def tokens_outcome(readings: Sequence[Reading], tokenizer: Any, name: str, source: str) -> Outcome:
    """The page, its data, and how loops and surprise go together; without loops, experts and it.

    Args:
        readings: of a model that decides loops or experts, in the text's order.
        tokenizer: the model's.
        name: of the model, for the title.
        source: of the text, likewise.

    Raises:
        DataError: the tokenizer can't say what its tokens are.
    """
    ends = list(accumulate(len(reading.ids_T) for reading in readings))
    kept = max(1, sum(end <= PAGE_TOKENS for end in ends))
    notes = []
    if kept > 1:
        notes.append("Dashed lines stand where a window ends; each is read on its own.")
    if kept < len(readings):
        notes.append(f"Only the first {ends[kept - 1]:,} of {ends[-1]:,} tokens are shown.")
    data = page_data(readings[:kept], tokenizer)
    environment = Environment(
        loader=PackageLoader("versatileffn.analysis"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
    )
    page = environment.get_template("tokens.html.j2").render(
        name=name, source=source, notes=notes, data=data, layers=data["layers"],
        count=len(data["tokens"]), by_loops=data["max_loops"] > 1,
        most=data["max_loops"] if data["max_loops"] > 1 else data["num_experts"],
    )  # fmt: skip
    files = {
        "tokens.html": page.encode(),
        "tokens.json": json.dumps(data, ensure_ascii=False, allow_nan=False).encode(),
    }
    summary = _loops_table if data["max_loops"] > 1 else _experts_table
    title, table, record = summary(data)
    return Outcome(title, table, record, files, notes)


def _loops_table(data: dict[str, Any]) -> tuple[str, dict[str, list[str]], dict[str, Any]]:
    """Title, cells, and record."""
    rows = [*data["layers"], {"number": "all", **data}]
    keys = ("number", "mean", "own", "next")
    table = {
        "layer": [str(row["number"]) for row in rows],
        "mean loops": [f"{row['mean']:.2f}" for row in rows],
        "own surprise": [_shown(row["own"]) for row in rows],
        "next token's": [_shown(row["next"]) for row in rows],
    }
    title = f"Loops against surprise, {len(data['tokens']):,} tokens (Spearman's ρ)"
    return title, table, {"correlations": [{key: row[key] for key in keys} for row in rows]}


def _experts_table(data: dict[str, Any]) -> tuple[str, dict[str, list[str]], dict[str, Any]]:
    """Title, cells, and record."""
    rows = [
        (layer["number"], expert, load, nats)
        for layer in data["layers"]
        for expert, (load, nats) in enumerate(
            zip(layer["load"], layer["expert_nats"], strict=True), start=1
        )
    ]
    table = {
        "layer": [str(number) for number, *_ in rows],
        "expert": [str(expert) for _, expert, *_ in rows],
        "load": [f"{load:.1%}" for *_, load, _ in rows],
        "surprise": ["–" if nats is None else f"{nats:.2f}" for *_, nats in rows],
    }
    keys = ("number", "load", "expert_nats")
    title = f"Experts of {len(data['tokens']):,} tokens, and the mean surprise of each one's, nats"
    return title, table, {"experts": [{key: row[key] for key in keys} for row in data["layers"]]}


def page_data(readings: Sequence[Reading], tokenizer: Any) -> dict[str, Any]:
    """What the page's script reads, JSON with no number that isn't finite.

    `tokens`, `nats` (null for the first of a window), `starts` of windows; of each layer that
    decides its 1-based `number`, `loops` (a digit for each token), `lam`, `experts` (`top_k` for
    each token, 1-based; null without), and mean and correlations, as for all layers together.
    Where no layer decides loops, those with real experts stand here instead, without `loops`, each
    with its experts' `load` and the mean surprise of their tokens, `expert_nats`.
    """
    nats_T = np.concatenate([reading.nats_T.numpy() for reading in readings])
    starts = [0, *accumulate(len(reading.ids_T) for reading in readings)][:-1]
    first = readings[0].layers
    by_loops = loops_decided(readings)
    kept = [n for n, each in enumerate(first)
            if (each.loops_T if by_loops else each.experts_TK) is not None]  # fmt: skip
    layers, total_T = [], np.zeros(len(nats_T))
    for index in kept:
        parts = [reading.layers[index] for reading in readings]
        row: dict[str, Any] = {"number": index + 1, **_experts(parts)}
        if by_loops:
            loops_T = _joined([part.loops_T for part in parts])
            total_T += loops_T
            row["loops"] = (loops_T + ord("0")).astype(np.uint8).tobytes().decode()
            row["lam"] = _rounded(_joined([part.lam_T for part in parts]))
            row |= _tendency(loops_T, nats_T)
        else:
            experts_TK = _joined([part.experts_TK for part in parts])
            row["load"] = expert_loads(readings, index + 1).round(4).tolist()
            row["expert_nats"] = _surprise_of(experts_TK, nats_T, first[index].num_experts)
        layers.append(row)
    return {
        "tokens": [text for reading in readings for text in token_texts(tokenizer, reading.ids_T)],
        "nats": _rounded(nats_T),
        "starts": starts,
        "max_loops": max(first[index].max_loops for index in kept),
        "num_experts": max(first[index].num_experts for index in kept),
        "layers": layers,
        **(_tendency(total_T / len(kept), nats_T) if by_loops else {}),
    }


def _experts(parts: Sequence[LayerReading]) -> dict[str, Any]:
    if parts[0].experts_TK is None:
        return {"experts": None, "top_k": 0}
    experts_TK = _joined([part.experts_TK for part in parts]) + 1
    return {"experts": experts_TK.flatten().tolist(), "top_k": experts_TK.shape[1]}


def _surprise_of(experts_TK: np.ndarray, nats_T: np.ndarray, total: int) -> list[float | None]:
    """Mean surprise of the tokens that select each expert; None where none does."""
    own = [nats_T[(experts_TK == n).any(1) & np.isfinite(nats_T)] for n in range(total)]
    return [round(float(nats.mean()), 4) if len(nats) else None for nats in own]


def _tendency(loops_T: np.ndarray, nats_T: np.ndarray) -> dict[str, Any]:
    """Mean loops, and their rank correlation with a token's own surprise and the next token's.

    A token's loops are decided with the token known, and serve to foretell the next one.
    """
    next_T = np.append(nats_T[1:], np.nan)  # NaN before each window's first
    return {
        "mean": round(float(loops_T.mean()), 4),
        "own": _correlation(loops_T, nats_T),
        "next": _correlation(loops_T, next_T),
    }


def _correlation(loops_T: np.ndarray, nats_T: np.ndarray) -> float | None:
    """Spearman's ρ; None where one of the two never changes."""
    known = np.isfinite(nats_T)
    loops, nats = loops_T[known], nats_T[known]
    if len(loops) < 2 or np.ptp(loops) == 0 or np.ptp(nats) == 0:
        return None
    return round(float(spearmanr(loops, nats).statistic), 4)


def _joined(parts: Sequence[Any]) -> np.ndarray:
    return np.concatenate([part.numpy() for part in parts])


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else round(value, 3) for value in values.tolist()]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"
