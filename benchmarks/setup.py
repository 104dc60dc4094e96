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

from benchmarks.distributions import gumbel_noise_for, loop_counts
from benchmarks.straightforward import run_straightforward
from versatileffn.execution.select import execute
from versatileffn.ffn.plan import ReusePlan
from versatileffn.layer import VersatileFFN

MATRICES = 3  # gate, up and down projection
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}
"""Largest relative error, in the Frobenius norm, between two ways to compute one layer's output or
its gradients: about five times the most that was seen (4e-6 and 6e-3; 2e-2 where D is tiny)."""
LOOSE = {"float32": 1e-4, "bfloat16": 1e-1}
"""The same for a whole model, where one layer's rounding may choose another expert in the next, and
for gradients on CUDA, where the loop predictor's are differences of rounded sums."""


class MismatchError(AssertionError):
    """Two ways to compute one thing disagree, so timing them would compare different work."""


@dataclass(frozen=True)
class Setup:
    """A layer with what it is given.

    Args:
        layer: weights in float32 for training, in the measured dtype for inference.
        hidden_MD: H.
        noise_ML: Gumbel noise that gives the prescribed loop counts.
        dtype: name of the measured dtype; with gradients, that of autocast.
    """

    layer: VersatileFFN
    hidden_MD: Tensor
    noise_ML: Tensor
    dtype: str

    @property
    def unit(self) -> int:
        """2·3·D·F, the FLOPs of one dense forward pass of one token."""
        return 2 * MATRICES * self.layer.mlp.down_proj.weight.numel()

    @property
    def mean_loops(self) -> float:
        """E[ℓ̂]."""
        with torch.no_grad():
            return self.plan().loop_count.double().mean().item()

    def plan(self, executor: str = "packed") -> ReusePlan:
        """What to do for each token; `no-width` leaves the width pathway out, λ = 0."""
        plan = self.layer.controller(self.hidden_MD, gumbel_noise=self.noise_ML)
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

    def runner(self, name: str) -> Callable[[], Tensor]:
        """What to time at inference, its plan made beforehand; `…-graph` replays a CUDA graph."""
        executor = name.removesuffix("-graph")
        call = partial(self.run, executor, self.plan(executor))
        return call if executor == name else captured(call)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 autocast where that is measured."""
        if self.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(self.hidden_MD.device.type, torch.bfloat16)

    def train_step(self, executor: str) -> list[Tensor]:
        """Forward and backward pass from H to all gradients: of H, then of each parameter.

        The controller decides within the step, so that its gradients are real ones.
        """
        inputs = [self.hidden_MD, *self.layer.parameters()]
        with self.autocast():
            plan = None if executor == "dense" else self.plan(executor)
            output_MD = self.run(executor, plan)  # type: ignore[arg-type]
        loss = output_MD.float().square().sum()
        return list(torch.autograd.grad(loss, inputs, allow_unused=executor == "dense"))


def set_up(
    d_model: int,
    d_hidden: int,
    tokens: int,
    shares: Sequence[float],
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    training: bool = False,
) -> Setup:
    """A layer with prescribed loops.

    Args:
        d_model, d_hidden: D and F.
        tokens: M.
        shares: of tokens with ℓ̂ = 1 … L.
        dtype: of weights at inference; with `training`, of autocast over float32 weights
            (float64 trains in float64).
        training: hidden states and weights take gradients.
    """
    torch.manual_seed(seed)
    stored = torch.float32 if training and dtype == "bfloat16" else getattr(torch, dtype)
    layer = VersatileFFN(d_model, d_hidden, max_loops=len(shares)).to(device, stored)
    layer.controller.tau = 1.0
    layer.train(training).requires_grad_(training)
    hidden_MD = torch.randn(tokens, d_model).to(device, stored)
    counts_M = loop_counts(shares, tokens, seed).to(device)
    with torch.no_grad():
        head = layer.controller.loop_head
        assert head is not None
        noise_ML = gumbel_noise_for(head(hidden_MD).float(), counts_M, seed)
        setup = Setup(layer, hidden_MD.requires_grad_(training), noise_ML, dtype)
        with setup.autocast() if training else nullcontext():
            assert torch.equal(setup.plan().loop_count, counts_M), "the noise missed the counts"
    return setup


def captured(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A CUDA graph's replay; the call itself on a CPU."""
    output = call()
    if not output.is_cuda:
        return call
    with torch.cuda.stream(torch.cuda.Stream()):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

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
        MismatchError: one is above the tolerance.
    """
    errors = {}
    for name in results.keys() - {reference}:
        pairs = zip(results[name], results[reference], strict=True)
        errors[name] = max(relative_error(*pair) for pair in pairs)
        if not errors[name] <= tolerance:
            raise MismatchError(
                f"{name} differs from {reference} by {errors[name]:.2e}, more than "
                f"{tolerance:.0e}: not timed"
            )
    return errors
