"""How well a model answers, and how deep it goes, question by question.

Legend: N questions.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from versatileffn.models.family import is_reuse
from versatileffn.models.mode import evaluating
from versatileffn.reproduce.depth.protocol import REUSED
from versatileffn.reproduce.depth.task import ANSWER, VALIDATION, DepthTask


@dataclass(frozen=True)
class Answers:
    """What a model did with some questions.

    Args:
        k: how many steps each asks for, [N].
        right: whether the whole state was right, [N].
        loops: of the reused FFN at the token that answers, [N]; None of a dense model.
        text_loss: held-out nats per byte of the text after the answers; None where there is none.
        text_loops: mean loops at the tokens that predict it.
    """

    k: np.ndarray
    right: np.ndarray
    loops: np.ndarray | None
    text_loss: float | None = None
    text_loops: float | None = None

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


def answer(model: Any, task: DepthTask, windows: np.ndarray) -> Answers:
    """Let a model answer, as at inference, all at once.

    Args:
        model: a causal language model.
        task: has the vocabulary.
        windows: questions with their answers, and what stands before them, [N, T].
    """
    ids = torch.from_numpy(windows).to(model.device)
    options = {"output_reuse_plans": True} if is_reuse(model.config) else {}
    with evaluating(model):
        out = model(input_ids=ids[:, :-1], use_cache=False, **options)
    right = out.logits[:, ANSWER - 1].argmax(-1) == ids[:, ANSWER]
    given = Answers(windows[:, 0] - task.states, right.cpu().numpy(), None)
    text = slice(ANSWER, ids.shape[1] - 1)  # what predicts text
    has_text = text.start < text.stop
    if has_text:
        targets = ids[:, ANSWER + 1 :].flatten()
        loss = F.cross_entropy(out.logits[:, text].flatten(0, 1).float(), targets)
        given = replace(given, text_loss=loss.item())
    if options and model.config.ffn().loops > 1:
        loops = out.reuse_plans[REUSED].loop_count.cpu().numpy()
        given = replace(given, loops=loops[:, ANSWER - 1])
        if has_text:
            given = replace(given, text_loops=float(loops[:, text].mean()))
    return given


@dataclass(frozen=True)
class DepthScores:
    """Scores along training on validation states, in the way that tasks are scored there.

    Args:
        task: the questions.
    """

    task: DepthTask

    def __call__(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """`exact_0`, `exact_1` … and, where the model loops, `loops_0` … by k."""
        given = answer(model, self.task, self.task.held_out(VALIDATION))
        scores = {f"exact_{k}": share for k, share in enumerate(given.exact)}
        return scores | {f"loops_{k}": loops for k, loops in enumerate(given.mean_loops or ())}


def _means(values: np.ndarray, k: np.ndarray) -> list[float]:
    return [float(values[k == each].mean()) for each in np.unique(k)]
