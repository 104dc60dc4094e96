"""Perplexity and bits per byte of any text, with a sliding window.

Each text is read after its tokenizer's first token (bos, else eos), so that every token of the text
is predicted, and predicted once. A window reads at most `window` tokens; the first one scores all
that it predicts, each later one the next `stride` tokens, so that a scored token has at least
`window − stride` tokens of context as soon as the text has had so many.

Legend: B windows at once, T tokens of a window, S scored tokens, V vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from versatileffn.data.split import utf8_size
from versatileffn.data.split_text import bits_per_byte
from versatileffn.errors import CheckpointError, ConfigError, DataError
from versatileffn.evaluation.likelihood import target_nats
from versatileffn.evaluation.tasks.loading import context_length
from versatileffn.evaluation.tasks.tokenizer import RequestTokenizer
from versatileffn.memory import check_memory, forward_bytes, naming_memory
from versatileffn.models.mode import evaluating

LOGITS_AT_ONCE = 2**26
"""Numbers; a batch has as many windows as keep their logits below it."""
TOKENS_AT_ONCE = 2**15
"""Tokens that one batch reads at most, unless a single window does."""
TOKENS_WAITING = 2**21
"""Tokens of windows that wait for others of their length."""
LONGEST_WINDOW = 2048
"""Tokens; the default window of models that take more."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts texts.

    Args:
        nats_per_token: mean negative log-likelihood of the texts' tokens.
        bits_per_byte: the same in bits per UTF-8 byte of the texts; comparable across tokenizers.
        tokens: how many tokens were scored; each token of the texts once.
        bytes: UTF-8 bytes of the texts.
        texts: how many texts there were; one doesn't see another.
        window: most tokens that a prediction reads.
        stride: tokens by which the window moves.
        uncertain: places in long texts where the tokens may not be those of the whole text, since
            the tokenizer takes such a text in pieces only.
        nats_per_text: the negative log-likelihood of each text, in nats.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int
    texts: int
    window: int
    stride: int
    uncertain: int
    nats_per_text: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """exp of the nats per token, infinite where that overflows."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Span:
    """One window.

    Args:
        text: number of the text, 0-based.
        inputs: token ids that are read, at most `window`.
        targets: the token after each of the last `len(targets)` inputs: those that are scored.
    """

    text: int
    inputs: Sequence[int]
    targets: Sequence[int]


def perplexity(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Score every token of some texts once, with a sliding window.

    Args:
        model: a causal language model of Transformers.
        tokenizer: its tokenizer, with a bos or an eos token.
        texts: each read on its own; empty ones are passed over. Memory doesn't depend on their
            length, but for the text itself.
        window: most tokens that a prediction reads; None takes the model's longest context, or
            `LONGEST_WINDOW` where that is longer.
        stride: tokens by which the window moves, 1 to `window`; None is half a window. A whole
            window reads the text in disjoint pieces (cheapest); 1 gives each token the most
            context.
        progress: called with the number of tokens scored so far.

    Returns:
        The measure.

    Raises:
        ConfigError: window or stride is out of range.
        DataError: there is no text, the tokenizer lacks the token that a text is read after, or it
            isn't the model's.
        CheckpointError: the model gives a text a likelihood that is no number.
        ResourceError: a window doesn't fit into memory.
    """
    window, stride = check_window(model, window, stride)
    prefix, vocab_size = prefix_token(tokenizer), model.config.vocab_size
    words = RequestTokenizer(tokenizer)
    sizes: list[int] = []  # bytes

    def spans() -> Iterator[Span]:
        for text in texts:
            if text:
                sizes.append(utf8_size(text))
                ids = checked(chain([prefix], words.stream(text)))
                yield from windows(ids, window, stride, len(sizes) - 1)

    def checked(ids: Iterable[int]) -> Iterator[int]:
        for token in ids:
            if token >= vocab_size:
                raise DataError(
                    f"the tokenizer makes token {token}, but the model's vocabulary has "
                    f"{vocab_size}: use the tokenizer that it was trained with"
                )
            yield token

    nats: dict[int, float] = {}
    tokens = 0
    with evaluating(model), torch.random.fork_rng(devices=[]):
        for batch in batches(spans(), LOGITS_AT_ONCE // vocab_size):
            for span, total in zip(batch, negative_log_likelihoods(model, batch), strict=True):
                if not math.isfinite(total):
                    raise CheckpointError(
                        f"the model gives text {span.text + 1} a log-likelihood of {-total}: its "
                        "weights are damaged, or it needs another dtype"
                    )
                nats[span.text] = nats.get(span.text, 0.0) + total
                tokens += len(span.targets)
            if progress is not None:
                progress(tokens)
    if not tokens:
        raise DataError("there is no text to score: give at least one that isn't empty")
    per_text = tuple(nats.get(index, 0.0) for index in range(len(sizes)))
    whole, size = math.fsum(per_text), sum(sizes)
    return Perplexity(
        whole / tokens,
        bits_per_byte(whole, size),
        tokens,
        size,
        len(sizes),
        window,
        stride,
        words.uncertain,
        per_text,
    )


def check_window(model: Any, window: int | None, stride: int | None) -> tuple[int, int]:
    """Window and stride in tokens, with the defaults of `perplexity`.

    Raises:
        ConfigError: one is out of range.
    """
    longest = context_length(model)
    window = min(longest, LONGEST_WINDOW) if window is None else window
    if not 1 <= window <= longest:
        raise ConfigError(
            f"window={window} must lie in 1 to the model's longest context of {longest} tokens"
        )
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        why = ": a longer one would skip tokens" if stride > window else ""
        raise ConfigError(f"stride={stride} must lie in 1 to window={window}{why}")
    return window, stride


def prefix_token(tokenizer: Any) -> int:
    """The token that a text is read after, so that its first token is predicted too.

    Raises:
        DataError: the tokenizer has neither bos nor eos.
    """
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    raise DataError(
        "the tokenizer has neither a bos nor an eos token, so nothing stands before a text's first "
        "token: give a tokenizer that has one"
    )


def windows(ids: Iterable[int], window: int, stride: int, text: int = 0) -> Iterator[Span]:
    """Cut a token sequence into windows that score each token but the first once.

    Args:
        ids: token ids, the first of which is only read.
        window: most tokens that are read.
        stride: tokens by which the window moves.
        text: the text's number.
    """
    ids = iter(ids)
    before = list(islice(ids, 1))
    count = window
    while targets := list(islice(ids, count)):
        before = [*before, *targets][-window - 1 :]
        yield Span(text, before[:-1], targets)
        count = stride


def batches(spans: Iterable[Span], positions: int) -> Iterator[list[Span]]:
    """Group neighbouring windows of like length, so that nothing is padded.

    Args:
        spans: windows in any order.
        positions: most scored positions of one batch, padding included; one window may exceed it.
            No batch of several windows reads more than `TOKENS_AT_ONCE`, and no more than
            `TOKENS_WAITING` wait for others of their length.
    """
    waiting: dict[int, list[Span]] = {}
    tokens = 0
    for span in spans:
        if tokens > TOKENS_WAITING:
            largest = max(waiting, key=lambda length: length * len(waiting[length]))
            tokens -= largest * len(waiting[largest])
            yield waiting.pop(largest)
        group = waiting.setdefault(len(span.inputs), [])
        group.append(span)
        tokens += len(span.inputs)
        more = len(group) + 1
        scored = max(len(member.targets) for member in group)
        if more * scored > positions or more * len(span.inputs) > TOKENS_AT_ONCE:
            tokens -= len(span.inputs) * len(group)
            yield waiting.pop(len(span.inputs))
    yield from waiting.values()


def negative_log_likelihoods(model: Any, batch: Sequence[Span]) -> list[float]:
    """Negative log-likelihood of each window's scored tokens, in nats.

    The vocabulary projection runs only at scored positions, where the model offers that.

    Args:
        model: a causal language model in evaluation mode.
        batch: windows whose inputs are equally long.

    Raises:
        ResourceError: memory doesn't suffice.
    """
    device = next(model.parameters()).device
    input_ids_BT = torch.tensor([list(span.inputs) for span in batch], device=device)
    length = input_ids_BT.shape[1]
    most = max(len(span.targets) for span in batch)
    kept = {"logits_to_keep": most} if _keeps_logits(model) else {}
    what = f"a window of {length:,} tokens"
    needed = forward_bytes(model, input_ids_BT.numel(), (most if kept else length) * len(batch))
    check_memory(needed, what, "lower --window", device)
    with torch.no_grad(), naming_memory(what, "lower --window"):
        logits_BSV: Tensor = model(input_ids=input_ids_BT, use_cache=False, **kept).logits
    totals = []
    for span, logits_SV in zip(batch, logits_BSV, strict=True):
        scored_SV = logits_SV[len(logits_SV) - len(span.targets) :]
        targets_S = torch.tensor(list(span.targets), device=device)
        totals.append(target_nats(scored_SV, targets_S).sum().item())
    return totals


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
