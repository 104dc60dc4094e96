"""The task: a state, a number k, and the state after k steps of cellular automaton rule 110.

A token is a whole state, or a k. A window is a question with its answer: `k, state, state after k
steps`; only the answer is scored. Some states are never trained on. As an embedding that is learned
would know nothing of these, it is given: the bits of a state lie along directions orthogonal to
each other, and it is tied to the output, so that the readout is linear and all that has to be
learned is the step and how often to do it.

Legend: D d_model, N windows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EOS_TOKEN = "<|endoftext|>"
QUESTION = 3
"""Tokens of a question with its answer."""
ANSWER = 2
"""Where the answer stands; what is before it is given."""
TEST, VALIDATION, TRAINING = range(3)
"""Of which part of the states a question asks."""


@dataclass(frozen=True)
class DepthTask:
    """Sizes of the task.

    Args:
        bits: of a state, which is a ring.
        most: the largest k; k = 0 copies.
    """

    bits: int
    most: int

    @property
    def window(self) -> int:
        """Tokens of what is trained on at once."""
        return QUESTION

    @property
    def states(self) -> int:
        """How many there are; their tokens are 0 … states − 1."""
        return 2**self.bits

    @property
    def vocabulary(self) -> list[str]:
        """All tokens as text, by id: states, ks, and the end of text that every tokenizer has."""
        states = [f"{state:0{self.bits}b}" for state in range(self.states)]
        return [*states, *(f"k={k}" for k in range(self.most + 1)), EOS_TOKEN]

    def after(self) -> np.ndarray:
        """The state that k steps make of each state, [most + 1, states]."""
        table = [np.arange(self.states)]
        for _ in range(self.most):
            table.append(rule_110(table[-1], self.bits))
        return np.stack(table)

    def part(self) -> np.ndarray:
        """Which part each state belongs to, [states]: a tenth each is for testing and validation.

        By Knuth's multiplicative hash of the state, so for all seeds alike.
        """
        tenth = (
            (np.arange(self.states, dtype=np.uint64) * np.uint64(2654435761)) >> np.uint64(7)
        ) % 10
        return np.minimum(tenth, TRAINING).astype(np.int64)

    def windows(self, k: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Questions with their answers, [N, 3] token ids, of [N] ks and [N] states."""
        return np.stack([self.states + k, state, self.after()[k, state]], axis=1)

    def held_out(self, part: int) -> np.ndarray:
        """Every question about the states of a part, [N, 3], sorted by k."""
        states = np.flatnonzero(self.part() == part)
        ks = np.repeat(np.arange(self.most + 1), len(states))
        return self.windows(ks, np.tile(states, self.most + 1))

    def stream(self, count: int, seed: int, opening: float | None) -> np.ndarray:
        """Questions about training states in the order of training, [count, 3].

        Two streams of one seed ask about the same states in the same order, whatever `opening` is.

        Args:
            count: how many.
            seed: of the draws.
            opening: share of the stream over which k opens from 0 to `most`, in equal parts; None
                asks for every k from the start.
        """
        generator = np.random.default_rng([seed, 110])
        states = generator.choice(np.flatnonzero(self.part() == TRAINING), size=count)
        largest = np.full(count, self.most)
        if opening is not None:
            opened = (np.arange(count) * (self.most + 1) / (opening * count)).astype(np.int64)
            largest = np.minimum(opened, self.most)
        ks = (generator.random(count) * (largest + 1)).astype(np.int64)
        return self.windows(ks, states)

    def embedding(self, d_model: int, seed: int) -> Tensor:
        """The embedding that is given, [vocabulary, D]: bits as ±1 along orthonormal directions.

        A k, and the end of text, has a direction of its own, at four times the length of a bit.
        """
        generator = torch.Generator().manual_seed(seed)
        directions = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator))[0]
        signs = 2.0 * torch.from_numpy(bits_of(np.arange(self.states), self.bits)).float() - 1
        others = len(self.vocabulary) - self.states
        return torch.cat(
            [signs @ directions[: self.bits], 4 * directions[self.bits : self.bits + others]]
        )


TASK = DepthTask(bits=10, most=4)
"""The one of all experiments here."""


def bits_of(states: np.ndarray, bits: int) -> np.ndarray:
    """The cells of some states, [N, bits] of 0 and 1."""
    return (states[:, None] >> np.arange(bits)) & 1


def rule_110(states: np.ndarray, bits: int) -> np.ndarray:
    """One step of rule 110 on a ring. Source: Wolfram's numbering: left 4, itself 2, right 1."""
    cells = bits_of(states, bits)
    left, right = np.roll(cells, 1, axis=1), np.roll(cells, -1, axis=1)
    after = (110 >> (4 * left + 2 * cells + right)) & 1
    return (after << np.arange(bits)).sum(axis=1)
