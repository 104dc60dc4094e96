"""Tokens per second of two causal language models on this machine, in turns in one process.

Legend: B sequences, T tokens of each, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from versatileffn.analysis.flops import ffn_of
from versatileffn.analysis.timing import Budget, Spread, measure, spread, waits_for
from versatileffn.errors import CheckpointError
from versatileffn.ffn.plan import ReusePlan
from versatileffn.models.layer import ReuseLayer

Work = Literal["prefill", "decode", "training"]
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.3}
"""Largest relative difference between a token's logits with the cache and without it. A wrong
cache is off by about 1; rounding may turn a token's choice of loops, and bfloat16 does so often."""


@dataclass(frozen=True)
class Speed:
    """What was measured of one kind of work.

    Args:
        work: `prefill` (the prompt, cache filled, last logits), `decode` (greedy, with the cache)
            or `training` (forward and backward pass, without the optimizer's step).
        sequences, tokens: of each call; of `decode`, the new tokens.
        tokens_per_second: by model.
        ratio: the first model's tokens per second over the second's, round by round.
        loops: E[ℓ̂] of the very tokens that were timed, by model.
        rounds: how often each model ran.
    """

    work: Work
    sequences: int
    tokens: int
    tokens_per_second: dict[str, Spread]
    ratio: Spread
    loops: dict[str, float]
    rounds: int


def compare(
    work: Work,
    models: Mapping[str, Any],
    ids_BT: Tensor,
    new_tokens: int,
    budget: Budget,
    bf16: bool = False,
) -> Speed:
    """Check two models, then time them in turns.

    Args:
        work: which.
        models: two, by name, on the device of `ids_BT`.
        ids_BT: the prompts, or what to train on; `decode` takes the first row.
        new_tokens: what `decode` adds to it.
        budget: when to stop.
        bf16: train under bfloat16 autocast, weights in float32.

    Raises:
        CheckpointError: a result isn't finite, or decoding with the cache disagrees with reading
            the same tokens without it.
    """
    run: dict[str, Callable[[], object]] = {}
    loops = {}
    for name, model in models.items():
        model.train(work == "training")
        if work == "training":
            step: Callable[[], list[Tensor]] = partial(train, model, ids_BT, bf16)
        elif work == "decode":
            step = Decoding(model, ids_BT[:1], new_tokens)
            _check_cache(name, model, step)
        else:
            step = partial(prefill, model, ids_BT)
        with counting_loops(model) as count:
            results = step()
        if not all(tensor.isfinite().all() for tensor in results):
            raise CheckpointError(f"{name}: {work} gives numbers that aren't finite: not timed")
        loops[name], run[name] = count(), step
    timings = measure(run, budget, waits_for(ids_BT.device.type))
    sequences = 1 if work == "decode" else len(ids_BT)
    tokens = new_tokens if work == "decode" else ids_BT.shape[1]
    total, (first, second) = sequences * tokens, models
    return Speed(
        work=work,
        sequences=sequences,
        tokens=tokens,
        tokens_per_second={
            name: spread([total / s for s in seconds]) for name, seconds in timings.seconds.items()
        },
        ratio=timings.ratio(second, first),
        loops=loops,
        rounds=len(timings.seconds[first]),
    )


@torch.inference_mode()
def prefill(model: nn.Module, ids_BT: Tensor) -> list[Tensor]:
    """Read the prompts and fill the cache; the last position's logits, [B, 1, V]."""
    return [model(input_ids=ids_BT, use_cache=True, logits_to_keep=1).logits]


class Decoding:
    """Greedy decoding after cached prompts, the same stretch at each call.

    Args:
        model: the language model.
        ids_BT: the prompts, read here.
        steps: new tokens of each.
    """

    def __init__(self, model: nn.Module, ids_BT: Tensor, steps: int) -> None:
        self.model, self.ids_BT, self.steps = model, ids_BT, steps
        self.cache = DynamicCache()
        with torch.inference_mode():
            model(input_ids=ids_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def __call__(self) -> list[Tensor]:
        """The logits of the first step, [B, 1, V]; later ones depend on which token won."""
        token_B1, first = self.ids_BT[:, -1:], None
        for _ in range(self.steps):
            logits = self.model(
                input_ids=token_B1, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            ).logits
            first = logits if first is None else first
            token_B1 = logits[:, -1].argmax(-1, keepdim=True)
        self.cache.crop(-self.steps)
        assert first is not None
        return [first]


def train(model: nn.Module, ids_BT: Tensor, bf16: bool) -> list[Tensor]:
    """Forward and backward pass; the loss, and all gradients.

    Gradients are dropped from the model, as `zero_grad` does between steps.
    """
    cast = torch.autocast(ids_BT.device.type, torch.bfloat16) if bf16 else nullcontext()
    with cast:
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return [loss.detach(), *gradients]


@torch.inference_mode()
def _check_cache(name: str, model: Any, decoding: Decoding) -> None:
    """A step of decoding is what reading all its tokens at once gives, twice in a row."""
    last_BT = torch.cat([decoding.ids_BT, decoding.ids_BT[:, -1:]], dim=1)
    expected = model(input_ids=last_BT, use_cache=False, logits_to_keep=1).logits
    for _ in range(2):  # the second call sees whether the first one put the cache back
        difference = (decoding()[0] - expected).double().norm() / expected.double().norm()
        if not difference <= TOLERANCE[expected.dtype]:
            raise CheckpointError(
                f"{name}: decoding with the cache differs from reading the same tokens without it "
                f"by {difference:.2g}, relative: not timed"
            )


@contextmanager
def counting_loops(model: Any) -> Iterator[Callable[[], float]]:
    """Count the loops that tokens take meanwhile; calling what is given tells their mean E[ℓ̂]."""
    ffn = ffn_of(model.config)
    constant = float(ffn.num_loops) if ffn.variant == "k-loop" else 1.0
    counts: list[Tensor] = []

    def count(_: nn.Module, __: Any, plan: ReusePlan) -> None:
        loops = plan.loop_count if plan.hard else torch.full_like(plan.loop_count, plan.max_loops)
        counts.append(loops.flatten().double())

    deciding = [m.controller for m in model.modules() if isinstance(m, ReuseLayer) and m.controller]
    hooks = [controller.register_forward_hook(count) for controller in deciding]
    try:
        yield lambda: torch.cat(counts).mean().item() if counts else constant
    finally:
        for hook in hooks:
            hook.remove()
