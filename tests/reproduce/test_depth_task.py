"""The depth task: its questions are right, its parts disjoint, its tokens are read like any."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from versatileffn.data.default_corpus import read_topics
from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenizers import load_tokenizer
from versatileffn.errors import ConfigError
from versatileffn.ffn.config import Versatile
from versatileffn.reproduce.depth.controller import PRESCRIBED, PrescribedDepth
from versatileffn.reproduce.depth.limits import FactsTask, UnseenTask
from versatileffn.reproduce.depth.mixed import MixedTask
from versatileffn.reproduce.depth.scores import Answers, answer
from versatileffn.reproduce.depth.task import (
    QUESTION,
    TASK,
    TEST,
    TRAINING,
    VALIDATION,
    DepthTask,
    rule_110,
)
from versatileffn.reproduce.depth.tokens import write_questions


def drawn(row: str) -> int:
    """A row of cells as a state; the first cell is bit 0."""
    return sum(1 << place for place, cell in enumerate(row) if cell == "#")


def test_a_step_is_rule_110() -> None:
    """The well-known triangle that grows to the left from one cell, on a ring it doesn't close."""
    rows = [
        "............#.",
        "...........##.",
        "..........###.",
        ".........##.#.",
        "........#####.",
    ]
    states = np.array([drawn(row) for row in rows])
    assert rule_110(states[:-1], bits=14).tolist() == states[1:].tolist()
    # It is a ring: what leaves at one end comes in at the other.
    assert rule_110(np.array([drawn("#.........")]), bits=10).tolist() == [drawn("#........#")]


def test_questions_hold_k_steps_of_each_state() -> None:
    for k, state, after in TASK.held_out(TEST)[::37].tolist():
        for _ in range(k - TASK.states):
            state = int(rule_110(np.array([state]), TASK.bits)[0])
        assert after == state


def test_nothing_held_out_is_ever_trained_on() -> None:
    parts = TASK.part()
    asked = {part: set(TASK.held_out(part)[:, 1].tolist()) for part in (TEST, VALIDATION)}
    trained = set(TASK.stream(20_000, seed=3, opening=0.4)[:, 1].tolist())
    assert not trained & (asked[TEST] | asked[VALIDATION])
    assert not asked[TEST] & asked[VALIDATION]
    assert len(trained) == (parts == TRAINING).sum()
    assert 80 < len(asked[TEST]) < 125
    assert len(TASK.held_out(TEST)) == 5 * len(asked[TEST])


def test_k_opens_while_states_stay_the_same() -> None:
    opened, plain = (TASK.stream(10_000, seed=1, opening=share) for share in (0.5, None))
    assert (opened[:, 1] == plain[:, 1]).all()
    ks = opened[:, 0] - TASK.states
    for largest in range(4):  # each of five parts of the first half opens one more
        part = ks[1000 * largest : 1000 * (largest + 1)]
        assert set(part.tolist()) == set(range(largest + 1))
    assert np.bincount(ks[5000:]).min() > 900
    assert np.bincount(plain[:1000, 0] - TASK.states).min() > 150
    assert (TASK.stream(100, seed=2, opening=None) != plain[:100]).any()


def test_the_embedding_reads_states_bit_by_bit() -> None:
    task = DepthTask(bits=5, most=2)
    embedding = task.embedding(d_model=16, seed=0)
    assert embedding.shape == (len(task.vocabulary), 16)
    same = embedding[: task.states] @ embedding[: task.states].T  # equal minus differing bits
    differing = [[bin(a ^ b).count("1") for b in range(32)] for a in range(32)]
    assert torch.allclose(same, 5 - 2 * torch.tensor(differing, dtype=torch.float32), atol=1e-5)
    assert (embedding[: task.states] @ embedding[task.states :].T).abs().max() < 1e-5


def test_the_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    splits = {"train": TASK.stream(64, 0, None), "val": TASK.held_out(VALIDATION)}
    write_questions(TASK, splits, 0, tmp_path / "tokens")
    train = PackedDataset(tmp_path / "tokens", "train", seq_len=3)
    assert len(train) == 64
    assert not train.shuffled
    assert [window["input_ids"].tolist() for window in train] == splits["train"].tolist()
    text = load_tokenizer(tmp_path / "tokens").decode(train[5]["input_ids"])
    k, state, _ = splits["train"][5].tolist()
    assert text.split()[:2] == [f"k={k - TASK.states}", f"{state:010b}"]


def test_text_follows_questions_in_directions_of_its_own(tmp_path: Path) -> None:
    mixed = MixedTask(TASK.bits, TASK.most, text=5)
    windows, alone = mixed.held_out(TEST), TASK.held_out(TEST)
    assert (windows[:, :QUESTION] == alone).all()
    byte = windows[:, QUESTION:] - mixed.vocabulary.index("<00>")
    assert byte.shape == (len(alone), 5)
    shown = bytes(byte[7].tolist())
    assert shown in "\n".join(read_topics().values()).encode()
    embedding = mixed.embedding(d_model=32, seed=0)
    assert len(embedding) == len(mixed.vocabulary)
    text = embedding[mixed.states + mixed.most + 1 : -1]
    questions = embedding[: mixed.states + mixed.most + 1]
    assert (questions @ text.T).abs().max() < 1e-4
    assert torch.allclose(text.norm(dim=1), questions[:1024].norm(dim=1)[0].expand(256))


def test_facts_are_asked_as_they_were_taught() -> None:
    facts = FactsTask(TASK.bits, TASK.most)
    asked = facts.held_out(TEST)
    assert len(asked) == 5 * facts.known
    answers = {(k, state): answer for k, state, answer in asked.tolist()}
    taught = facts.stream(5_000, seed=3, opening=None).tolist()
    assert all(answers[k, state] == answer for k, state, answer in taught)
    assert np.mean(asked[:, 2] == TASK.held_out(TEST)[:, 2][0]) < 0.01
    assert len(set(asked[:, 2].tolist())) > 300  # drawn, not computed


def test_the_largest_k_is_never_trained_on() -> None:
    unseen = UnseenTask(TASK.bits, TASK.most)
    assert set(unseen.stream(5_000, 0, None)[:, 0].tolist()) == {TASK.states + k for k in range(4)}
    assert (unseen.held_out(TEST) == TASK.held_out(TEST)).all()


def test_text_is_scored_where_it_is_predicted() -> None:
    mixed = MixedTask(TASK.bits, TASK.most, text=5)
    windows = mixed.held_out(TEST)[::29]

    class Knows(torch.nn.Module):  # what comes next, by a wide margin
        device, config = torch.device("cpu"), LlamaConfig()

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
            targets = torch.from_numpy(windows[:, 1:])
            return SimpleNamespace(
                logits=50.0 * torch.nn.functional.one_hot(targets, len(mixed.vocabulary))
            )

    given = answer(Knows(), mixed, windows)
    assert given.exact == [1] * 5
    assert given.text_loss is not None
    assert given.text_loss < 1e-6
    assert given.loops is None
    assert answer(Knows(), TASK, windows[:, :QUESTION]).text_loss is None


def test_the_prescribed_depth_is_what_is_asked_for() -> None:
    controller = PrescribedDepth(8, 16, Versatile(max_loops=4, controller=PRESCRIBED))
    ids = torch.tensor([[TASK.states + k, 7] for k in range(5)])
    controller.see(ids)
    plan = controller(torch.randn(5, 2, 8))
    assert plan.loop_count.tolist() == [[1, 1], [1, 1], [1, 2], [1, 3], [1, 4]]
    assert plan.lam[:, 1].tolist() == [0.75, 0.75, 0.5, 0.25, 0]
    with pytest.raises(ConfigError, match="needs input_ids"):
        controller.see(None)


def test_scores_are_by_k() -> None:
    k = np.repeat(np.arange(5), 2)
    loops = np.array([1, 1, 1, 2, 2, 2, 3, 3, 4, 4])
    right = np.array([1, 1, 1, 0, 0, 0, 1, 1, 0, 1], dtype=bool)
    given = Answers(k, right, loops)
    assert given.exact == [1, 0.5, 0, 1, 0.5]
    assert given.mean_loops == [1, 1.5, 2, 3, 4]
    assert given.rank_correlation is not None
    assert given.rank_correlation > 0.95
    assert Answers(k, right, np.full(10, 4)).rank_correlation is None
    assert Answers(k, right, None).mean_loops is None
