"""One layer, its hidden states and a plan with prescribed loops, and all that carries it out.

Legend: M tokens, D d_model, F d_hidden, L max_loops.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.distributions import loop_counts, prescribe
from benchmarks.straightforward import run_straightforward
from versatileffn.execution.select import execute
from versatileffn.ffn.plan import ReusePlan
from versatileffn.layer import VersatileFFN

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
"""Largest relative error, in the Frobenius norm, between two ways to compute one thing.

In a layer it is a twentieth of that; in a whole model one layer's rounding may choose another
expert in the next, and on CUDA the loop predictor's gradients are differences of rounded sums."""


@dataclass(frozen=True)
class Setup:
    """A layer with what it is given.

    Args:
        layer: weights in float32 for training, in the measured dtype for inference.
        hidden_MD: H.
        dtype: name of the measured dtype; with gradients, that of autocast.
    """

    layer: VersatileFFN
    hidden_MD: Tensor
    dtype: str

    def plan(self, executor: str = "packed") -> ReusePlan:
        """What to do for each token; `no-width` leaves the width pathway out, λ = 0."""
        plan: ReusePlan = self.layer.controller(self.hidden_MD)
        if executor == "no-width":
            plan = replace(plan, gates=None, experts=None, slices=None, lam=plan.lam * 0)
        return plan

    def run(self, executor: str, plan: ReusePlan) -> Tensor:
        """Carry out a plan by the name of an executor, `dense` or `straightforward`, [M, D]."""
        hidden_MD, view = self.hidden_MD, self.layer.mlp.view(self.layer.norm)
        if executor == "dense":
            return hidden_MD + view.update(view.hidden(hidden_MD))
        if executor == "straightforward":
            return run_straightforward(hidden_MD, view, plan)
        execution: Any = "packed" if executor == "no-width" else executor
        return hidden_MD + execute(hidden_MD, view, plan, execution)

    def step(self, name: str) -> Callable[[], list[Tensor]]:
        """What to time: a training step, or inference with its plan made beforehand.

        Args:
            name: of an executor; `…-graph` replays a CUDA graph.
        """
        if self.layer.training:
            return partial(self._train, name)
        executor = name.removesuffix("-graph")
        plan = self.plan(executor)

        def infer() -> list[Tensor]:
            return [self.run(executor, plan)]

        return infer if executor == name else captured(infer)

    def _train(self, executor: str) -> list[Tensor]:
        """Forward and backward pass from H to all gradients: of H, then of each parameter.

        The controller decides within the step, so that its gradients are real ones.
        """
        inputs = [self.hidden_MD, *self.layer.parameters()]
        with self.autocast():
            plan = None if executor == "dense" else self.plan(executor)
            output_MD = self.run(executor, plan)  # type: ignore[arg-type]
        loss = output_MD.float().square().sum()
        return list(torch.autograd.grad(loss, inputs, allow_unused=executor == "dense"))

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 autocast where that is measured."""
        if self.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(self.hidden_MD.device.type, torch.bfloat16)


def set_up(
    d_model: int,
    d_hidden: int,
    tokens: int,
    shares: Sequence[float],
    dtype: str = "float32",
    device: str = "cpu",
    training: bool = False,
) -> Setup:
    """A layer, M tokens and prescribed loops, by the shares of tokens with ℓ̂ = 1 … L.

    With `training`, hidden states and weights take gradients.
    """
    torch.manual_seed(0)
    stored = torch.float32 if training else getattr(torch, dtype)
    layer = VersatileFFN(d_model, d_hidden, max_loops=len(shares)).to(device, stored)
    layer.train(training).requires_grad_(training)
    hidden_MD = torch.randn(tokens, d_model).to(device, stored).requires_grad_(training)
    counts_M = loop_counts(shares, tokens)
    prescribe(layer.controller, counts_M)
    setup = Setup(layer, hidden_MD, dtype)
    with torch.no_grad(), setup.autocast() if training else nullcontext():
        assert torch.equal(setup.plan().loop_count.cpu(), counts_M), "the noise missed the counts"
    return setup


def captured(call: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """A CUDA graph's replay; the call itself on a CPU."""
    if not call()[0].is_cuda:
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay() -> list[Tensor]:
        graph.replay()
        return outputs

    return replay


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖, in float64."""
    expected = expected.double()
    distance = (actual.double() - expected).norm()
    return (distance / expected.norm().clamp_min(1e-30)).item()


def check_equal(
    results: dict[str, list[Tensor]], reference: str, tolerance: float
) -> dict[str, float]:
    """Largest relative error of each result to the reference's, which is left out.

    Raises:
        AssertionError: one is above the tolerance, so timing would compare different work.
    """
    errors = {}
    for name in results.keys() - {reference}:
        errors[name] = max(map(relative_error, results[name], results[reference]))
        if not errors[name] <= tolerance:
            raise AssertionError(
                f"{name} differs from {reference} by {errors[name]:.2e}, more than "
                f"{tolerance:.0e}: not timed"
            )
    return errors
