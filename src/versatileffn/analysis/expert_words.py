"""Which words go to which expert.

Words are as in `words.py`; each token of one selects K experts, of a layer's router.

Legend: N num_experts.
"""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import numpy as np

from versatileffn.analysis.outcome import Outcome, csv_bytes
from versatileffn.analysis.readings import Reading, expert_loads
from versatileffn.analysis.stop_words import STOP_WORDS
from versatileffn.analysis.words import frequent, whole_words
from versatileffn.errors import ConfigError

SHOWN = 5
"""Words of the terminal's table, for each expert."""


@dataclass(frozen=True)
class ExpertWord:
    """One word, with the expert that it goes to most beyond chance.

    Args:
        word: in lower case.
        count: how often it occurs.
        stop: it is a stop word.
        expert: 1-based.
        share: of the selections of the word's tokens, what goes to that expert.
        load: of all tokens' selections, what does.
        excess: count · (share − load).
    """

    word: str
    count: int
    stop: bool
    expert: int
    share: float
    load: float
    excess: float


def words_by_expert(
    readings: Sequence[Reading], tokenizer: Any, layer: int, min_count: int
) -> list[ExpertWord]:
    """The words of some text, expert by expert, those that say most of it first.

    Args:
        readings: of a model that routes.
        tokenizer: the model's.
        layer: which, 1-based.
        min_count: words that occur less often are left out.

    Raises:
        ConfigError: there is no such layer, or it has no router.
        DataError: no word occurs so often, or the tokenizer can't say what its tokens are.
    """
    able = [n for n, each in enumerate(readings[0].layers, 1) if each.experts_TK is not None]
    if layer not in able:
        raise ConfigError(f"--layer {layer} routes to no experts: take one of {able}")
    loads_N = expert_loads(readings, layer)
    sums: dict[str, list[np.ndarray]] = {}
    for reading in readings:
        experts_TK = reading.layers[layer - 1].experts_TK
        assert experts_TK is not None
        for word, tokens in whole_words(reading, tokenizer):
            chosen = experts_TK[tokens].flatten().long()
            sums.setdefault(word, []).append(_shares(chosen, len(loads_N)))
    found = [_word(word, shares, loads_N) for word, shares in frequent(sums, min_count).items()]
    return sorted(found, key=lambda word: (word.expert, -word.excess, word.word))


def _shares(chosen: Any, num_experts: int) -> np.ndarray:
    counts: np.ndarray = chosen.bincount(minlength=num_experts).double().numpy()
    return counts / counts.sum()


def _word(word: str, shares: Sequence[np.ndarray], loads_N: np.ndarray) -> ExpertWord:
    mean_N = np.mean(shares, axis=0)
    best = int((mean_N - loads_N).argmax())
    share, load, count = float(mean_N[best]), float(loads_N[best]), len(shares)
    return ExpertWord(
        word, count, word in STOP_WORDS, best + 1, share, load, count * (share - load)
    )


def expert_words_outcome(words: Sequence[ExpertWord], loads_N: np.ndarray, layer: int) -> Outcome:
    """A line for each expert, and a table of every word.

    Args:
        words: of `words_by_expert`.
        loads_N: each expert's share of the selections.
        layer: which, 1-based.
    """
    content = [word for word in words if not word.stop]
    experts = range(1, len(loads_N) + 1)
    by_expert = {n: [word.word for word in content if word.expert == n] for n in experts}
    return Outcome(
        title=f"Words that go to each expert of layer {layer}, of {len(content):,}",
        table={
            "expert": [str(n) for n in experts],
            "load": [f"{load:.1%}" for load in loads_N],
            "words beyond that": [", ".join(by_expert[n][:SHOWN]) or "–" for n in experts],
        },
        record={
            "layer": layer,
            "load": loads_N.tolist(),
            "words": [asdict(word) for word in words],
        },
        files={
            "words.csv": csv_bytes([f.name for f in fields(ExpertWord)], map(astuple, words)),
        },
        notes=[
            "This model decides no loops, so words are ranked by expert. Stop words stand in "
            "words.csv alone."
        ],
    )
