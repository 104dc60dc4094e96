"""Which way of batching requests is right for a model: the fastest that gives what they give alone.

| mode      | attention                         | vocabulary projection           |
|-----------|-----------------------------------|---------------------------------|
| tree      | an item's tree in one row         | the nodes that predict          |
| tree-full | an item's tree in one row         | the model's own, every position |
| single    | one request after the other       | the model's own                 |

Not every architecture takes a mask of its own (sliding windows, ALiBi, recurrences), and some do
more to their logits than a projection (soft caps, scales). The last mode is right by definition. So
the item with the most tokens, and one of middling length, are scored that way, and the first mode
of the table that gives the same for both is chosen. The same items give the same choice.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from versatileffn.errors import CheckpointError
from versatileffn.evaluation.tasks.requests import Item
from versatileffn.evaluation.tasks.tree import grow_tree
from versatileffn.memory import is_out_of_memory
from versatileffn.models.checkpoint import first_line

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""How far a mode may be from single requests, as a part of the log-likelihood (at least 1 nat)."""


TREE, FULL, SINGLE = "tree", "tree-full", "single"
MODES = (TREE, FULL, SINGLE)

Answer = Callable[[Item, str], list[float]]
"""Log-likelihoods of one item's requests in one mode, in nats."""


def choose_mode(
    items: Sequence[Item],
    answer: Answer,
    plain: Callable[[Item], list[float]],
    config: Any,
    dtype: torch.dtype,
) -> tuple[str, str | None]:
    """The first mode that agrees with single requests on the largest item and a usual one.

    Args:
        items: all that are to be scored, at least one.
        answer: scores an item in a mode.
        plain: scores its requests alone, which the modes are held to.
        config: the model's.
        dtype: what it computes in.

    Returns:
        The mode, and why it isn't the fastest one, if it isn't.

    Raises:
        CheckpointError: a log-likelihood isn't a finite number, or no mode agrees.
    """
    by_size = sorted(items, key=lambda item: len(grow_tree(item)))
    probes = [by_size[-1], by_size[len(by_size) // 2]]
    expected = [plain(item) for item in probes]
    for item, scores in zip(probes, expected, strict=True):
        check_finite(item, scores)
    window = sliding_window(config)
    longest = max(len(r.query) for item in items for r in item.requests)
    passed_over: list[str] = []
    for mode in MODES:
        if mode != SINGLE and window is not None and longest > window:
            why = f"{mode} would replace the model's window of {window} tokens"
        else:
            why = _objection(mode, probes, answer, expected, dtype)
        if not why:
            note = "; ".join(passed_over)
            return mode, f"scored in mode {mode}, for {note}" if note else None
        passed_over.append(why)
    raise CheckpointError(
        f"the model's log-likelihoods can't be had twice alike ({passed_over[-1]}), so no score "
        "would mean anything: leave --onednn and --bf16 out, if you gave them"
    )


def _objection(
    mode: str,
    probes: Sequence[Item],
    answer: Answer,
    expected: list[list[float]],
    dtype: torch.dtype,
) -> str:
    """Why a mode won't do; empty if it will."""
    try:
        found = [answer(item, mode) for item in probes]
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
            raise  # the machine's, not the architecture's
        return f"{mode} isn't taken by the model ({first_line(error)[:80]})"
    apart = max(_distance(f, e) for f, e in zip(found, expected, strict=True))
    if apart <= TOLERANCE.get(dtype, TOLERANCE[torch.float32]):
        return ""
    return f"{mode} differs from single requests by {apart:.1e}"


def _distance(found: list[float], expected: list[float]) -> float:
    """How far two ways to compute log-likelihoods are apart, as a part of them."""
    parts = (abs(f - e) / max(1.0, abs(e)) for f, e in zip(found, expected, strict=True))
    return max((part if math.isfinite(part) else math.inf for part in parts), default=0.0)


def sliding_window(config: Any) -> int | None:
    """How far a model's layers look back where that is limited, in tokens; None where it isn't."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def check_finite(item: Item, scores: list[float]) -> None:
    """Raise CheckpointError where a log-likelihood isn't a finite number."""
    for choice, score in enumerate(scores):
        if not math.isfinite(score):
            raise CheckpointError(
                f"the model's log-likelihood of {item.task}, item {item.index}, choice {choice} "
                f"is {score}: its weights are damaged, it diverged, or this precision is too "
                "narrow for it (try float32)"
            )
