"""Which words a layer finds hard.

A word is a longest run of letters, with apostrophes and hyphens inside, in lower case, whatever the
tokens are: every token that holds a part of it belongs to it, and its loops are their mean. A word
that touches the beginning or the end of a window is left out: it may be cut.
"""

import io
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, astuple, dataclass, fields
from itertools import accumulate
from typing import Any, TypeVar

from versatileffn.analysis.outcome import Outcome, csv_bytes
from versatileffn.analysis.readings import Reading
from versatileffn.analysis.stop_words import STOP_WORDS
from versatileffn.analysis.token_texts import token_texts
from versatileffn.errors import ConfigError, DataError

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
T = TypeVar("T", bound=Sized)
SHOWN = 8
"""Words of the terminal's table, at each end."""


@dataclass(frozen=True)
class Word:
    """One word.

    Args:
        word: in lower case.
        count: how often it occurs.
        stop: it is a stop word, and in no cloud.
        mean_loops: mean over its occurrences.
        lam: λ that belongs to it, 1 − mean loops/L (Eq. 13).
        excess_loops: count · (mean loops − the layer's mean over words): loops spent on it beyond
            what as many average words take; negative for easy ones. Its size in the cloud.
    """

    word: str
    count: int
    stop: bool
    mean_loops: float
    lam: float
    excess_loops: float


def ranked_words(
    readings: Sequence[Reading], tokenizer: Any, layer: int, min_count: int
) -> list[Word]:
    """The words of some text, those that a layer spends most loops on first.

    Args:
        readings: of a model that decides loops.
        tokenizer: the model's.
        layer: which, 1-based.
        min_count: words that occur less often are left out.

    Raises:
        ConfigError: there is no such layer, or it decides no loops.
        DataError: no word occurs so often, or the tokenizer can't say what its tokens are.
    """
    if not 1 <= layer <= len(readings[0].layers) or readings[0].layers[layer - 1].loops_T is None:
        able = [n for n, each in enumerate(readings[0].layers, 1) if each.loops_T is not None]
        raise ConfigError(f"--layer {layer} decides no loops: take one of {able}")
    sums: dict[str, list[float]] = {}
    for reading in readings:
        loops_T = reading.layers[layer - 1].loops_T
        assert loops_T is not None
        for word, tokens in whole_words(reading, tokenizer):
            sums.setdefault(word, []).append(loops_T[tokens].double().mean().item())
    kept = frequent(sums, min_count)
    every = [loops for found in sums.values() for loops in found]
    mean, most = sum(every) / len(every), readings[0].layers[layer - 1].max_loops
    found = [_word(word, loops, mean, most) for word, loops in kept.items()]
    return sorted(found, key=lambda word: (-word.mean_loops, -word.count, word.word))


def _word(word: str, loops: Sequence[float], mean: float, most: int) -> Word:
    count, own = len(loops), sum(loops) / len(loops)
    return Word(word, count, word in STOP_WORDS, own, 1 - own / most, count * (own - mean))


def frequent(sums: Mapping[str, T], min_count: int) -> dict[str, T]:
    """The words that occur often enough.

    Args:
        sums: one entry for each occurrence, by word.
        min_count: the least.

    Raises:
        DataError: none does.
    """
    kept = {word: found for word, found in sums.items() if len(found) >= min_count}
    if not kept:
        raise DataError(
            f"no word occurs {min_count} times or more: give a longer text, or lower --min-count"
        )
    return kept


def whole_words(reading: Reading, tokenizer: Any) -> Iterator[tuple[str, slice]]:
    """Each whole word of a window, in lower case, and its tokens."""
    texts = token_texts(tokenizer, reading.ids_T)
    ends = list(accumulate(map(len, texts)))
    text = "".join(texts)
    for match in WORD.finditer(text):
        start, end = match.span()
        if start > 0 and end < len(text):
            yield match[0].lower(), slice(bisect_right(ends, start), bisect_left(ends, end) + 1)


def words_outcome(words: Sequence[Word], layer: int) -> Outcome:
    """Ranked table and two clouds.

    Source: Figure 5 (clouds at λ = 0.25 and λ = 0.75 in layer 0).

    Args:
        words: of `ranked_words`.
        layer: which, 1-based.

    Raises:
        ConfigError: the extra that draws clouds isn't installed.
    """
    content = [word for word in words if not word.stop]
    hard = {word.word: word.excess_loops for word in content if word.excess_loops > 0}
    easy = {word.word: -word.excess_loops for word in content if word.excess_loops < 0}
    clouds = {"words-hard.png": hard, "words-easy.png": easy}
    pictures = {name: draw_cloud(sizes) for name, sizes in clouds.items() if sizes}
    ends = [*content[:SHOWN], *content[max(SHOWN, len(content) - SHOWN) :]]
    heading = [field.name for field in fields(Word)]
    left_out = sorted(clouds.keys() - pictures.keys())
    notes = [f"no {name}: the layer gives all words the same loops" for name in left_out]
    return Outcome(
        title=f"Words that layer {layer} finds hardest and easiest, of {len(content):,}",
        table={
            "word": [word.word for word in ends],
            "count": [f"{word.count:,}" for word in ends],
            "mean loops": [f"{word.mean_loops:.2f}" for word in ends],
            "λ": [f"{word.lam:.2f}" for word in ends],
            "excess loops": [f"{word.excess_loops:+.1f}" for word in ends],
        },
        record={"layer": layer, "words": [asdict(word) for word in words]},
        files=pictures | {"words.csv": csv_bytes(heading, map(astuple, words))},
        notes=["Stop words stand in words.csv alone.", *notes],
    )


def draw_cloud(sizes: Mapping[str, float]) -> bytes:
    """Words by their size, as PNG on a clear ground; the same whenever it is drawn.

    Raises:
        ConfigError: the extra that draws clouds isn't installed.
    """
    try:
        from wordcloud import WordCloud
    except ImportError:
        raise ConfigError(
            "drawing clouds needs wordcloud: pip install 'versatileffn[words]'"
        ) from None
    cloud = WordCloud(width=900, height=500, mode="RGBA", background_color=None, random_state=0,
                      colormap="plasma", prefer_horizontal=1.0)  # fmt: skip
    content = io.BytesIO()
    cloud.generate_from_frequencies(dict(sizes)).to_image().save(content, format="png")
    return content.getvalue()
