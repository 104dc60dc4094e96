"""How well a model answers, and how deep it goes, question by question.

Legend: N questions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from versatileffn.models.family import is_reuse
from versatileffn.models.mode import evaluating
from versatileffn.reproduce.depth.arm import REUSED
from versatileffn.reproduce.depth.task import TASK, UNSCORED


@dataclass(frozen=True)
class Answers:
    """What a model did with some questions.

    Args:
        k: how many steps each asks for, [N].
        right: whether the whole state was right, [N].
        loops: of the reused FFN at the token that answers, [N]; None of a dense model.
    """

    k: np.ndarray
    right: np.ndarray
    loops: np.ndarray | None

    @property
    def exact(self) -> list[float]:
        """Share of right answers for k = 0, 1, …"""
        return _means(self.right, self.k)

    @property
    def mean_loops(self) -> list[float] | None:
        """Loops for k = 0, 1, …"""
        return None if self.loops is None else _means(self.loops, self.k)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of loops with k; None where all take the same number of loops."""
        if self.loops is None or (self.loops == self.loops[0]).all():
            return None
        return float(spearmanr(self.k, self.loops).statistic)


def answer(model: Any, windows: np.ndarray) -> Answers:
    """Let a model answer, as at inference, all at once.

    Args:
        model: a causal language model.
        windows: questions with their answers, [N, 3].
    """
    ids = torch.from_numpy(windows).to(model.device)
    options = {"output_reuse_plans": True} if is_reuse(model.config) else {}
    with evaluating(model):
        out = model(input_ids=ids[:, :UNSCORED], use_cache=False, **options)
    right = out.logits[:, -1].argmax(-1) == ids[:, -1]
    loops = None
    if options and model.config.ffn().loops > 1:
        loops = out.reuse_plans[REUSED].loop_count[:, -1].cpu().numpy()
    return Answers(windows[:, 0] - TASK.states, right.cpu().numpy(), loops)


@dataclass(frozen=True)
class DepthScores:
    """Scores along training, in the way that tasks are scored there.

    Args:
        windows: questions with their answers, [N, 3].
    """

    windows: np.ndarray

    def __call__(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """`exact_0`, `exact_1` … and, where the model loops, `loops_0` … by k."""
        given = answer(model, self.windows)
        scores = {f"exact_{k}": share for k, share in enumerate(given.exact)}
        return scores | {f"loops_{k}": loops for k, loops in enumerate(given.mean_loops or ())}


def _means(values: np.ndarray, k: np.ndarray) -> list[float]:
    return [float(values[k == each].mean()) for each in range(TASK.most + 1)]
