"""The task in the company of ordinary text: a piece of text follows each question.

So a controller sees tokens that need a known number of loops, and others of which nobody knows. A
token of text is a byte of the manual of the Python that runs, whose last tenth is held out; all of
them are predicted. As in the task alone all embeddings are given: those of bytes lie in
directions that neither bits nor ks use.

Legend: D d_model, N windows, T tokens of text in a window.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from versatileffn.data.default_corpus import read_topics
from versatileffn.errors import DataError
from versatileffn.reproduce.depth.task import QUESTION, TRAINING, DepthTask

BYTES = 256


@dataclass(frozen=True)
class MixedTask(DepthTask):
    """Questions that text follows.

    Args:
        text: T, bytes of text after each question.
    """

    text: int = 5

    @property
    def window(self) -> int:
        """Tokens of what is trained on at once."""
        return self.text + QUESTION

    @property
    def vocabulary(self) -> list[str]:
        """Those of the task alone, then bytes."""
        *words, end = super().vocabulary
        return [*words, *(f"<{byte:02x}>" for byte in range(BYTES)), end]

    def held_out(self, part: int) -> np.ndarray:
        """Every question about the states of a part, each before text that no run trains on."""
        return self._with_text(super().held_out(part), part, seed=0)

    def stream(self, count: int, seed: int, opening: float | None) -> np.ndarray:
        """Questions in the order of training, each before text, [count, 3 + T]."""
        return self._with_text(super().stream(count, seed, opening), TRAINING, seed)

    def embedding(self, d_model: int, seed: int) -> Tensor:
        """The embedding that is given, [vocabulary, D].

        A byte is a direction among those that bits and ks leave, as long as a state.
        """
        known = DepthTask(self.bits, self.most)
        given = known.embedding(d_model, seed)
        rank = self.bits + len(given) - self.states
        basis = torch.linalg.svd(given, full_matrices=False)[2][:rank].T
        generator = torch.Generator().manual_seed(seed + 1)
        free = torch.randn(BYTES, d_model, generator=generator)
        free -= free @ basis @ basis.T
        free *= self.bits**0.5 / free.norm(dim=1, keepdim=True)
        return torch.cat([given[:-1], free, given[-1:]])

    def _with_text(self, questions: np.ndarray, part: int, seed: int) -> np.ndarray:
        text = np.frombuffer("\n".join(read_topics().values()).encode(), np.uint8)
        if len(text) < 100 * self.window:
            raise DataError("this Python is installed without its manual (pydoc_data)")
        border = len(text) * 9 // 10
        text = text[:border] if part == TRAINING else text[border:]
        generator = np.random.default_rng([seed, part, 111])
        first = generator.integers(len(text) - self.text, size=len(questions))
        pieces = text[first[:, None] + np.arange(self.text)].astype(np.int64)
        return np.concatenate([questions, pieces + self.states + self.most + 1], axis=1)
