"""Which executors a model gets on this machine, whether they compute the truth, and how fast.

Legend: M tokens, D d_model, L max_loops.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from versatileffn.analysis.speed import measure, waits_for
from versatileffn.analysis.truth import as_naive
from versatileffn.execution.kernels.support import unsupported
from versatileffn.execution.operators import why_no_operator
from versatileffn.execution.plain import has_plain_linears
from versatileffn.execution.select import execution_choices, forget_choices
from versatileffn.ffn import naive
from versatileffn.ffn.config import Versatile
from versatileffn.ffn.view import FFNView
from versatileffn.layer import OWN_CONTROLLERS, Reuse, VersatileFFN

WORKS = {"decode": (1, False), "prefill": (256, False), "training": (256, True)}
"""Tokens, and whether there are gradients."""
ONE_LOOP = "max_loops=1"
"""The same as `decode`, by the smallest budget."""
EXACT, USUAL = torch.float64, torch.float32
LIMITS = {EXACT: 1e-10, USUAL: 1e-4}
"""Norm of the error over that of the truth. Tests hold float32 to 1e-5 at their sizes; here a sum
goes over all neurons of a real layer, and a wrong executor is off by more than 1e-2."""
LEAST = 0.1
"""Of the largest gradient: smaller ones are held to that, since what cancels leaves rounding."""
MOST_WEIGHTS = 2**24
"""Of a layer whose gradients are checked: the truth copies them for each token and loop."""
PATIENCE = 2.5
"""Seconds for the clock, for each kind of work."""


@dataclass(frozen=True)
class Subject:
    """A layer to look at.

    Args:
        name: what to call it.
        layer: the layer, in evaluation mode.
        view: its FFN.
        d_model: D.
    """

    name: str
    layer: Reuse
    view: FFNView
    d_model: int

    def hidden(self, tokens: int) -> Tensor:
        """Random hidden states, always the same, [M, D]."""
        like: Tensor = self.view.down.weight  # type: ignore[assignment]
        noise = torch.Generator().manual_seed(1)
        return torch.randn(tokens, self.d_model, generator=noise).to(like)

    def run(self, hidden: Tensor) -> Tensor:
        """Y, as the model computes it."""
        return hidden + self.view.scale * self.layer.update(hidden, self.view)


def own_subject(d_model: int, d_hidden: int, dtype: torch.dtype, device: torch.device) -> Subject:
    """A layer with random weights and every term of the algebra in it."""
    layer = VersatileFFN(d_model, d_hidden, Versatile(reuse_gains="learned"))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=noise) * 0.3)
    layer = layer.to(device, dtype).eval()
    name = f"a layer of random weights, D = {d_model}, F = {d_hidden}"
    return Subject(name, layer, layer.mlp.view(layer.norm), d_model)


def subjects_of(model: Any) -> list[Subject]:
    """The layers of one of our models, of any family."""
    width = model.config.get_text_config().hidden_size
    return [
        Subject(f"layer {number} of the model", layer, layer.ffn_view(), width)
        for number, layer in enumerate(model.reuse_layers(), start=1)
    ]


def most_telling(subjects: list[Subject]) -> Subject:
    """The first of the layers that loop the most."""
    return max(subjects, key=lambda subject: subject.layer.loops)


def executors(subjects: list[Subject]) -> list[dict[str, Any]]:
    """What each kind of work is carried out by: `work`, `executor`, `reason`, `layers`."""
    found: Counter[tuple[str, str, str]] = Counter()
    kinds = [(work, *each, None) for work, each in WORKS.items()] + [(ONE_LOOP, 1, False, 1)]
    for subject, (work, tokens, training, cap) in product(subjects, kinds):
        layer = subject.layer
        if layer.experts is not None:
            found[work, "experts", "real experts: there is one way to run them"] += 1
            continue
        forget_choices()
        with torch.set_grad_enabled(training), _capped(layer, cap):
            subject.run(subject.hidden(min(tokens, 8)))
        for choice in execution_choices():
            found[work, choice["executor"], choice["reason"]] += 1
    return [
        {"work": work, "executor": executor, "reason": reason, "layers": layers}
        for (work, executor, reason), layers in found.items()
    ]


def alternatives(subject: Subject) -> dict[str, str | None]:
    """Why a layer can't have what may be faster, by name; None where it can."""
    if subject.layer.experts is not None:
        return {}
    hidden = subject.hidden(8)
    with torch.no_grad():
        weights = subject.layer.decide(hidden, subject.view).weights()
        kernels = unsupported(hidden, subject.view, weights)
    return {"torch.compile": why_no_operator(subject.view), "triton": kernels}


def numerics(subject: Subject) -> dict[str, Any]:
    """How far a layer, as it would run here, is from the truth, token by token.

    Source: Algorithms 1 and 2, `ffn/naive.py`.

    Returns:
        `layer`, `dtype`, `tokens`, `limit`; relative `errors` of the output, of the gradients,
        where there is memory for them, and of the output by the smallest budget; `ok`; and
        `skipped`, why nothing, or not all, was done.
    """
    layer, view = subject.layer, subject.view
    weights = [weight for linear in view.linears for weight in linear.parameters()]
    size = sum(weight.numel() for weight in weights)
    tokens = max(2, min(16, 2**27 // size))
    found: dict[str, Any] = {
        "layer": subject.name, "dtype": str(weights[0].dtype).removeprefix("torch."),
        "tokens": tokens, "limit": LIMITS[weights[0].dtype], "errors": {}, "skipped": None,
    }  # fmt: skip
    reason = _why_no_truth(subject)
    if reason is not None:
        return found | {"skipped": reason, "ok": True}
    several = [1 + token % layer.loops for token in range(tokens)]
    with _capped(layer, torch.tensor(several)):
        found["errors"]["output"] = _output_error(subject, several)
        if size <= MOST_WEIGHTS:
            found["errors"]["gradients"] = _gradient_error(subject, several)
        else:
            found["skipped"] = "gradients of a layer this large"
    with _capped(layer, 1):
        found["errors"][ONE_LOOP] = _output_error(subject, [1] * tokens)
    found["ok"] = all(error <= found["limit"] for error in found["errors"].values())
    return found


def speeds(subject: Subject, clock: Callable[..., Any] = measure) -> list[dict[str, Any]]:
    """Tokens per second of a layer as it would run here, beside others, in turns.

    Returns:
        For each kind of work: `tokens`, mean `loops`, `tokens_per_second`, and the time of `masked`
        (all loops for every token) and of the `dense` FFN over this one's.
    """
    layer, view = subject.layer, subject.view

    def dense(hidden: Tensor) -> Tensor:
        return hidden + view.scale * view.update(view.hidden(hidden))

    def masked(hidden: Tensor) -> Tensor:
        kept, layer.execution = layer.execution, "masked"
        try:
            return subject.run(hidden)
        finally:
            layer.execution = kept

    rows = []
    for work, (tokens, training) in WORKS.items():
        hidden = subject.hidden(tokens)

        def timed(run: Callable[[Tensor], Tensor], hidden: Tensor = hidden) -> Callable[[], None]:
            return lambda: _once(run, hidden, layer)

        with torch.set_grad_enabled(training):
            timings = clock(
                {"auto": timed(subject.run), "masked": timed(masked), "dense": timed(dense)},
                rounds=200, seconds=PATIENCE, wait=waits_for(hidden.device),
            )  # fmt: skip
        with torch.no_grad():
            loops = layer.decide(hidden, view).loop_count.double().mean().item()
        spreads = timings.spreads()["auto"]
        rows.append({
            "work": work, "tokens": tokens, "loops": loops, "rounds": spreads["rounds"],
            "tokens_per_second": tokens / spreads["median"],
            "masked": timings.ratio("masked", "auto"), "dense": timings.ratio("dense", "auto"),
        })  # fmt: skip
    return rows


def _once(run: Callable[[Tensor], Tensor], hidden: Tensor, layer: nn.Module) -> None:
    output = run(hidden)
    if torch.is_grad_enabled():
        output.sum().backward()
        layer.zero_grad(set_to_none=True)


def _why_no_truth(subject: Subject) -> str | None:
    """Why Algorithms 1 and 2 don't say what a layer should compute."""
    if subject.layer.experts is not None:
        return "real experts are none of the paper's algorithms"
    if type(subject.layer.controller) not in OWN_CONTROLLERS:
        return f"how a {type(subject.layer.controller).__name__} decides is its own"
    return None if has_plain_linears(subject.view) else "its linear maps aren't plain ones"


@contextmanager
def _capped(layer: Reuse, caps: int | Tensor | None) -> Iterator[None]:
    """Other caps for a while: from 1 to L, say, so that different loops are run anyhow."""
    kept = layer.budget
    layer.set_budget(caps if layer.loops > 1 else None)
    try:
        yield
    finally:
        layer.budget = kept


def _truth(subject: Subject, hidden_MD: Tensor, caps: list[int], training: bool) -> Tensor:
    """Y by the paper's algorithms, [M, D]."""
    weights = as_naive(subject.layer, subject.view)
    rows = []
    for hidden_D, cap in zip(hidden_MD, caps, strict=True):
        weights.budget = cap
        if training or weights.soft:
            rows.append(naive.train_token(weights, hidden_D, None))
        else:
            rows.append(naive.infer_token(weights, hidden_D)[0])
    return torch.stack(rows)


@torch.no_grad()
def _output_error(subject: Subject, caps: list[int]) -> float:
    hidden_MD = subject.hidden(len(caps))
    return _relative(subject.run(hidden_MD), _truth(subject, hidden_MD, caps, training=False))


@torch.enable_grad()
def _gradient_error(subject: Subject, caps: list[int]) -> float:
    """The largest, of the gradients of H and of every weight of the layer's FFN and reuse.

    Each relative to its own size, or to `LEAST` of the largest one: with gains of 0, as after a
    conversion, nothing depends on how often a token loops, and that gradient is rounding alone.
    """
    hidden_MD = subject.hidden(len(caps)).requires_grad_()
    parts = [subject.layer.controller, subject.layer.gains, subject.layer.loop_weights]
    modules = [part for part in (*parts, *subject.view.linears) if part is not None]
    inputs = [hidden_MD, *(weight for part in modules for weight in part.parameters())]
    gradients = [
        torch.autograd.grad(
            (output * output.detach()).sum(), inputs, allow_unused=True, materialize_grads=True
        )
        for output in (
            subject.run(hidden_MD), _truth(subject, hidden_MD, caps, training=True)
        )
    ]  # fmt: skip
    least = LEAST * max(truth.double().norm().item() for truth in gradients[1])
    return max(_relative(ours, truth, least) for ours, truth in zip(*gradients, strict=True))


def _relative(actual: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Norm of the error over that of the truth, at least `least`; infinite if it is no number."""
    error = (actual - expected).double().norm().item()
    size = max(expected.double().norm().item(), least)
    ratio = error / size if size else (0.0 if error == 0 else float("inf"))
    return ratio if ratio == ratio else float("inf")
