"""Words and their loops, against a text whose loops are known."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from support.stories import make_reading, make_tokenizer
from versatileffn.analysis.expert_words import expert_words_outcome, words_by_expert
from versatileffn.analysis.readings import Reading, expert_loads
from versatileffn.analysis.token_texts import token_texts
from versatileffn.analysis.words import ranked_words, words_outcome
from versatileffn.errors import ConfigError, DataError

TEXT = "Cut. The miller's river, the RIVER and the mill. Mill-race; the river 7 cut"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def reading(tokenizer: Any, loops: dict[str, int]) -> Reading:
    """Every token takes 1 loop, but for those with the given letters."""
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    counts = [
        max([n for part, n in loops.items() if part in text], default=1)
        for text in token_texts(tokenizer, ids)
    ]
    made = make_reading(ids)
    layer = replace(made.layers[0], loops_T=torch.tensor(counts, dtype=torch.uint8))
    return replace(made, layers=(layer, made.layers[1]))


def test_words_are_whole_and_counted_in_lower_case(tokenizer) -> None:
    words = {word.word: word for word in ranked_words([reading(tokenizer, {})], tokenizer, 1, 1)}
    assert {word: found.count for word, found in words.items()} == {
        "the": 4, "miller's": 1, "river": 3, "and": 1, "mill": 1, "mill-race": 1,
    }  # fmt: skip  # "Cut" and "cut" touch the window's ends
    assert [word for word, found in words.items() if found.stop] == ["the", "and"]
    assert all(word.mean_loops == 1 and word.lam == 0.75 for word in words.values())


def test_a_words_loops_are_the_mean_of_its_tokens(tokenizer) -> None:
    made = reading(tokenizer, {"R": 4, "I": 3})
    texts = token_texts(tokenizer, made.ids_T)
    inside = [i for i, text in enumerate(texts) if text.strip() in ("R", "I", "V", "E")]
    assert len(inside) == 5  # RIVER is spelt out
    loops = made.layers[0].loops_T[inside].double().mean().item()
    words = ranked_words([made], tokenizer, 1, 2)
    assert [word.word for word in words] == ["river", "the"]  # the rest is rarer
    assert words[0].mean_loops == pytest.approx((loops + 2) / 3)
    assert words[0].lam == pytest.approx(1 - words[0].mean_loops / 4)
    mean = (8 + 2 + loops) / 11  # over every word, the rare ones, too
    assert words[0].excess_loops == pytest.approx(2 + loops - 3 * mean)


def test_hard_words_and_easy_ones_have_a_cloud_each(tokenizer) -> None:
    pytest.importorskip("wordcloud", reason="the extra `words` isn't installed")
    words = ranked_words([reading(tokenizer, {"R": 4})], tokenizer, 1, 1)
    outcome = words_outcome(words, 1)
    assert list(outcome.files) == ["words-hard.png", "words-easy.png", "words.csv"]
    assert outcome.files == words_outcome(words, 1).files
    lines = outcome.files["words.csv"].decode().splitlines()
    assert lines[0] == "word,count,stop,mean_loops,lam,excess_loops"
    assert [line.split(",")[0] for line in lines[1:]] == [word.word for word in words]
    assert "the" not in outcome.table["word"]


def test_words_go_to_the_expert_that_takes_them_beyond_its_load(tokenizer) -> None:
    """K = 2 of 3: every token asks expert 1, those of RIVER and of "the" 3, too, all others 2."""
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    marked = [text.strip() in ("R", "I", "V", "E", "the") for text in texts]
    experts = torch.tensor([[0, 2 if mark else 1] for mark in marked], dtype=torch.int16)
    made = replace(make_reading(ids).layers[0], loops_T=None, experts_TK=experts, num_experts=3)
    routed = replace(make_reading(ids), layers=(made,))
    loads = expert_loads([routed], 1)
    assert loads == pytest.approx(
        [1 / 2, marked.count(False) / len(ids) / 2, sum(marked) / len(ids) / 2]
    )
    words = {word.word: word for word in words_by_expert([routed], tokenizer, 1, 1)}
    assert list(words) == [w.word for w in sorted(
        words.values(), key=lambda word: (word.expert, -word.excess, word.word))]  # fmt: skip
    the = words["the"]
    assert (the.expert, the.count, the.share) == (3, 4, 0.375)  # "The" is two others
    assert the.excess == pytest.approx(4 * (0.375 - loads[2]))
    assert words["mill"].expert == 2
    lines = expert_words_outcome(list(words.values()), loads, 1).table
    assert lines["expert"] == ["1", "2", "3"]
    assert lines["words beyond that"][0] == "–"
    assert "the" not in lines["words beyond that"][2].split(", ")  # a stop word
    with pytest.raises(ConfigError, match=r"--layer 2 routes to no experts: take one of \[1\]"):
        words_by_expert([routed], tokenizer, 2, 1)
    with pytest.raises(DataError, match="9 times or more"):
        words_by_expert([routed], tokenizer, 1, 9)


def test_what_cannot_be_ranked_is_refused(tokenizer) -> None:
    made = reading(tokenizer, {})
    with pytest.raises(ConfigError, match=r"--layer 3 decides no loops: take one of \[1, 2\]"):
        ranked_words([made], tokenizer, 3, 1)
    with pytest.raises(DataError, match="5 times or more"):
        ranked_words([made], tokenizer, 1, 5)


def test_a_missing_extra_is_named(tokenizer, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wordcloud", None)
    words = ranked_words([reading(tokenizer, {"R": 4})], tokenizer, 1, 1)
    with pytest.raises(ConfigError, match=r"versatileffn\[words\]"):
        words_outcome(words, 1)
