"""Tokens per second of a reuse model and of a dense one, on this machine, in one process.

What disturbs a machine lasts longer than one call, so whatever is compared takes turns, and a ratio
is the median of the ratios of each round.

Legend: B sequences, T tokens of each, V vocabulary.
"""

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from versatileffn.errors import CheckpointError
from versatileffn.memory import check_memory, forward_bytes

Spread = dict[str, float]
"""`median`, and the quartiles `low` and `high`."""
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.3}
"""Largest relative difference between a token's logits with the cache and without it. A wrong
cache is off by about 1; rounding may turn a token's choice of loops, and bfloat16 does so often."""


def spread(values: list[float]) -> Spread:
    """Median and quartiles of at least one value."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "low": low, "high": high}


class Timings(dict[str, list[float]]):
    """Seconds of every round, by name; round i of one name ran beside round i of the others."""

    def ratio(self, over: str, under: str, factor: float = 1.0) -> Spread:
        """Spread of self[over] / (factor · self[under]) over the rounds."""
        return spread([a / (factor * b) for a, b in zip(self[over], self[under], strict=True)])

    def ratios(self, pairs: Iterable[tuple[str, str, float]]) -> dict[str, Spread]:
        """Several of them, as `over/under`."""
        return {f"{a}/{b}": self.ratio(a, b, factor) for a, b, factor in pairs}

    def spreads(self) -> dict[str, Spread]:
        """Spreads in seconds, with the number of `rounds`, by name."""
        return {name: {**spread(each), "rounds": len(each)} for name, each in self.items()}


def measure(
    subjects: Mapping[str, Callable[[], object]],
    rounds: int = 25,
    seconds: float = 8.0,
    least: int = 7,
    warmup: int = 1,
    calls: int = 1,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time callables in turns, each round beginning with the next one.

    Args:
        subjects: what to time, by name.
        rounds, seconds, least: it ends after so many rounds, or so many seconds, but never before
            the least number of rounds.
        warmup: rounds that aren't timed.
        calls: that are timed as one, their mean taken.
        wait: for the device, before each reading of the clock.
        clock: seconds.
    """
    names = list(subjects)
    for name in names * warmup:
        subjects[name]()
    gc.collect()
    found = Timings({name: [] for name in names})
    started = clock()
    for done in range(rounds):
        if done >= least and clock() - started >= seconds:
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            wait()
            before = clock()
            for _ in range(calls):
                subjects[name]()
            wait()
            found[name].append((clock() - before) / calls)
    return found


def waits_for(device: torch.device | str) -> Callable[[], object]:
    """What makes the host wait for the device."""
    return torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None


@torch.inference_mode()
def prefill(model: nn.Module, ids_BT: Tensor) -> list[Tensor]:
    """Read the prompts and fill the cache; the last position's logits, [B, 1, V]."""
    return [model(input_ids=ids_BT, use_cache=True, logits_to_keep=1).logits]


class Decoding:
    """Greedy decoding of `steps` tokens after cached prompts, the same stretch at each call."""

    def __init__(self, model: nn.Module, ids_BT: Tensor, steps: int) -> None:
        self.model, self.ids_BT, self.steps = model, ids_BT, steps
        self.cache = DynamicCache()
        with torch.inference_mode():
            self._read(ids_BT)

    @torch.inference_mode()
    def __call__(self) -> list[Tensor]:
        """The logits of the first step, [B, 1, V]; later ones depend on which token won."""
        first = logits = self._read(self.ids_BT[:, -1:])
        for _ in range(self.steps - 1):
            logits = self._read(logits[:, -1].argmax(-1, keepdim=True))
        self.cache.crop(-self.steps)
        return [first]

    @torch.inference_mode()
    def check(self, name: str) -> None:
        """See that a step gives what reading all its tokens at once does, twice in a row.

        Raises:
            CheckpointError: it doesn't.
        """
        last_BT = torch.cat([self.ids_BT, self.ids_BT[:, -1:]], dim=1)
        expected = self.model(input_ids=last_BT, use_cache=False, logits_to_keep=1).logits
        for _ in range(2):  # the second call sees whether the first one put the cache back
            difference = (self()[0] - expected).double().norm() / expected.double().norm()
            if not difference <= TOLERANCE[expected.dtype]:
                raise CheckpointError(
                    f"{name}: decoding with the cache differs from reading the same tokens without "
                    f"it by {difference:.2g}, relative: not timed"
                )

    def _read(self, ids: Tensor) -> Tensor:
        options = {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        logits: Tensor = self.model(input_ids=ids, **options).logits
        return logits


def train(model: nn.Module, ids_BT: Tensor, bf16: bool) -> list[Tensor]:
    """Forward and backward pass; the loss, and all gradients.

    Gradients are dropped from the model, as `zero_grad` does between steps.
    """
    with torch.autocast(ids_BT.device.type, torch.bfloat16) if bf16 else nullcontext():
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return [loss.detach(), *gradients]


def subject(
    work: str, model: nn.Module, ids_BT: Tensor, new_tokens: int, bf16: bool = False
) -> Callable[[], list[Tensor]]:
    """What to time for a kind of work, see `compare`; the model's mode fits it from now on."""
    model.train(work == "training")
    if work == "training":
        return partial(train, model, ids_BT, bf16)
    return (
        Decoding(model, ids_BT, new_tokens) if work == "decode" else partial(prefill, model, ids_BT)
    )


def check_fits(models: Mapping[str, Any], tokens: int, work: str, remedy: str) -> None:
    """Refuse batches that can't fit before they are made.

    Raises:
        ResourceError: with the memory needed and available.
    """
    training = work == "training"
    for model in models.values():
        needed = forward_bytes(model, tokens, tokens if training else 1, training)
        check_memory(needed, f"{work} of {tokens:,} tokens", remedy, model.device)


def compare(
    work: str,
    models: Mapping[str, Any],
    ids_BT: Tensor,
    new_tokens: int,
    bf16: bool = False,
    **budget: Any,
) -> dict[str, Any]:
    """Check two models, then time them in turns.

    Args:
        work: `prefill` (the prompt, cache filled, last logits), `decode` (greedy, with the cache)
            or `training` (forward and backward pass, without the optimizer's step).
        models: two, by name, on the device of `ids_BT`.
        ids_BT: the prompts, or what to train on; `decode` takes the first row.
        new_tokens: what `decode` adds to it.
        bf16: train under bfloat16 autocast, weights in float32.
        budget: of `measure`.

    Returns:
        JSON-able: the work, `sequences` and `tokens` of each call, `tokens_per_second` by model,
        their `ratio` by round, mean `loops` of the very tokens that were timed, `rounds`.

    Raises:
        CheckpointError: a result isn't finite, or the cache changes one.
    """
    run: dict[str, Any] = {}
    loops = {}
    ids_BT = ids_BT[:1] if work == "decode" else ids_BT
    for name, model in models.items():
        run[name] = subject(work, model, ids_BT, new_tokens, bf16)
        if isinstance(run[name], Decoding):
            run[name].check(name)
        results, loops[name] = with_loops(model, run[name])
        if not all(tensor.isfinite().all() for tensor in results):
            raise CheckpointError(f"{name}: {work} gives numbers that aren't finite: not timed")
        if work != "training":  # where each run has noise of its own
            check_same(name, run[name](), results)
    timings = measure(run, wait=waits_for(ids_BT.device), **budget)
    sequences, tokens = len(ids_BT), new_tokens if work == "decode" else ids_BT.shape[1]
    first, second = models
    rates = {n: spread([sequences * tokens / s for s in each]) for n, each in timings.items()}
    return {
        "work": work, "sequences": sequences, "tokens": tokens, "tokens_per_second": rates,
        "ratio": timings.ratio(second, first), "loops": loops, "rounds": len(timings[first]),
    }  # fmt: skip


def check_same(name: str, results: list[Tensor], expected: list[Tensor]) -> None:
    """See that what is timed gives what it gives while somebody looks at its decisions.

    Raises:
        CheckpointError: it doesn't.
    """
    for result, wanted in zip(results, expected, strict=True):
        difference = (result - wanted).double().norm() / wanted.double().norm()
        if not difference <= TOLERANCE[wanted.dtype]:
            raise CheckpointError(
                f"{name}: what would be timed differs by {difference:.2g}, relative, from the same "
                "while its decisions are read: not timed"
            )


def with_loops(model: Any, run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], float]:
    """What a run gives while its plans are made and read, and the mean loops E[ℓ̂] of its tokens."""
    counts: list[Tensor] = []

    def count(layer: Any, _: nn.Module, __: Any, plan: Any) -> None:
        budget = getattr(layer, "budget", None)
        plan = plan if budget is None else plan.capped(budget)
        loops = plan.loop_count if plan.hard else torch.full_like(plan.loop_count, plan.max_loops)
        counts.append(loops.flatten().double())

    deciding = [module for module in model.modules() if getattr(module, "controller", None)]
    hooks = [each.controller.register_forward_hook(partial(count, each)) for each in deciding]
    try:
        results = run()
    finally:
        for hook in hooks:
            hook.remove()
    return results, torch.cat(counts).mean().item() if counts else 1.0
