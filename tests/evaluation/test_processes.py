"""Scoring in two real processes: each does its part, all get everything, and none waits."""

import dataclasses

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from evaluation.tasks import subjects
from evaluation.tasks.test_scoring import make_items
from support.forked import in_processes
from support.processes import PROCESSES, join, leave
from versatileffn.data.packed import PackedDataset
from versatileffn.data.tokenize import tokenize_corpus
from versatileffn.errors import CheckpointError
from versatileffn.evaluation.held_out import held_out_loss
from versatileffn.evaluation.processes import divide_work, is_divided
from versatileffn.evaluation.task_scores import TaskScores
from versatileffn.evaluation.tasks.scoring import Scorer

TASKS, ITEMS = ["sciq", "piqa"], 7


def score(rank, folder, wrapping):
    join(rank, folder)
    subject, scored = subjects.versatile(), []
    if wrapping == "fsdp2":
        subject = dataclasses.replace(subject, model=divided())
    original = Scorer.score
    Scorer.score = lambda self, items: scored.extend(items) or original(self, items)
    scores = TaskScores(TASKS, ITEMS)(subject.model, subject.tokenizer)
    torch.save((scores, len(scored)), f"{folder}/{rank}.pt")
    leave()


@pytest.mark.parametrize(("wrapping", "expected_items"), [("whole", [7, 7]), ("fsdp2", [14, 14])])
def test_two_processes_score_what_one_would(wrapping, expected_items, tmp_path):
    in_processes(score, tmp_path, wrapping)
    subject = subjects.versatile()
    expected = TaskScores(TASKS, ITEMS)(subject.model, subject.tokenizer)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    assert [scores for scores, _ in found] == [expected] * PROCESSES
    assert [items for _, items in found] == expected_items


def divided():
    """A model whose weights FSDP divides, as in `score`."""
    model = subjects.versatile().model
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (PROCESSES,)))
    return model


def hold_out(rank, folder, wrapping):
    join(rank, folder)
    model = divided() if wrapping == "fsdp2" else subjects.versatile().model
    steps, forward = [], model.forward
    model.forward = lambda *args, **options: steps.append(1) or forward(*args, **options)
    windows = PackedDataset(folder / "tokens", "train", seq_len=12)
    found = held_out_loss(model, windows, batch_size=2, windows=range(7))
    torch.save((found, len(steps)), f"{folder}/{rank}.pt")
    leave()


@pytest.mark.parametrize("wrapping", ["whole", "fsdp2"])
def test_two_processes_share_the_held_out_windows(wrapping, tmp_path):
    """Seven windows: with divided weights one is read twice, for both must take equal steps."""
    (tmp_path / "text.txt").write_text("the rain in spain " * 40)
    tokenize_corpus(tmp_path / "text.txt", tmp_path / "tokens", vocab_size=257, val_fraction=0)
    in_processes(hold_out, tmp_path, wrapping)
    windows = PackedDataset(tmp_path / "tokens", "train", seq_len=12)
    model = subjects.versatile().model
    expected = held_out_loss(model, windows, batch_size=2, windows=range(7))
    for found, steps in (torch.load(tmp_path / f"{r}.pt", weights_only=False) for r in (0, 1)):
        assert found.nats_per_token == pytest.approx(expected.nats_per_token, rel=1e-6)
        assert (found.tokens, found.bits_per_byte) == (
            expected.tokens, pytest.approx(expected.bits_per_byte, rel=1e-6)
        )  # fmt: skip
        assert steps == 2


def fail_in_one(rank, folder):
    join(rank, folder)

    def work(pieces):
        if 3 in pieces:
            raise CheckpointError("the third piece is bad")
        return {piece: piece for piece in pieces}

    with pytest.raises(CheckpointError, match="third"):
        divide_work(torch.nn.Linear(2, 2), list(range(6)), work)
    assert divide_work(torch.nn.Linear(2, 2), [0, 1, 2], work) == {0: 0, 1: 1, 2: 2}
    leave()


def test_an_error_in_one_process_ends_all(tmp_path):
    in_processes(fail_in_one, tmp_path)


def see_divided(rank, folder):
    join(rank, folder)
    layer = torch.nn.Linear(4, 4)
    assert not is_divided(layer)
    weight = distribute_tensor(layer.weight.detach(), init_device_mesh("cpu", (PROCESSES,)))
    assert isinstance(weight, DTensor)
    layer.weight = torch.nn.Parameter(weight)
    assert is_divided(layer)
    leave()


def test_divided_weights_are_noticed(tmp_path):
    in_processes(see_divided, tmp_path)


def test_autocast_is_scored_in_its_precision():
    """And no mode is declared wrong for differing from float32."""
    subject = subjects.llama()
    with torch.autocast("cpu", torch.bfloat16):
        scorer = Scorer(subject.model, 2048)
        assert scorer.dtype == torch.bfloat16
        scorer.choose(make_items(subject))
        assert str(scorer.mode) == "tree"
        TaskScores(["sciq"], 4)(subject.model, subject.tokenizer)
    assert Scorer(subject.model, 2048).dtype == torch.float32
