"""Which executor carries out a plan, and why.

| asked for     | circumstances                                              | executor           |
|---------------|------------------------------------------------------------|--------------------|
| `auto`        | eager, gradients off, one loop at most, nobody wants plans | once               |
| `auto`        | the same loops for every token (dense, k-loop)             | masked: no mask    |
| `auto`        | eager, hard plan, gradients off                            | packed             |
| `auto`        | eager, hard plan, gradients on, plain weights              | packed_training    |
| `auto`        | torch.compile, hard plan, plain weights, RMSNorm, SwiGLU   | operator           |
| `auto`        | anything else, and under torch.func                        | masked             |
| `masked`      | always valid                                               | masked             |
| `packed`      | as `auto`, dense and k-loop too, a ConfigError for masked  |                    |
| `recompute`   | as `packed`, but training keeps states only                | recomputed         |
| `triton`      | gradients off, CUDA, what the kernels support              | triton             |
| `triton`      | gradients off otherwise                                    | a ConfigError      |
| `triton`      | gradients on, or under torch.func                          | as `auto`          |

Where a norm follows W_out, or weights differ by loop, `stepwise` takes the place of packed, and
`stepwise_training`, which keeps states only, that of packed_training and recomputed; the latter
also where φ has weights of its own.

Packed training, the operator's too, has no second derivatives and says so; masked has them.
Weights are plain when each linear is an unwrapped `nn.Linear` without hooks: no adapter, no
quantization, no offloading. The operator always keeps states only in training. A recorded graph
other than torch.compile's (export, tracing, CUDA graphs) must hold for other tokens too, so it
takes static shapes: every token then runs all L loops.

What was chosen, and why, is remembered: `execution_choices()` has it for a run's record. What falls
back from what was asked for is also logged, once for each reason; torch.compile does both while it
traces.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from versatileffn.errors import ConfigError
from versatileffn.execution.flat import flatten_tokens
from versatileffn.execution.kernels.custom_op import run_triton
from versatileffn.execution.kernels.support import unsupported
from versatileffn.execution.masked import run_masked
from versatileffn.execution.native import compiled_one_loop
from versatileffn.execution.once import run_once
from versatileffn.execution.operators import run_operator, why_no_operator
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import (
    run_packed_training,
    run_recomputed,
    run_stepwise_training,
)
from versatileffn.execution.plain import why_called, why_stepwise
from versatileffn.execution.stepwise import run_stepwise
from versatileffn.ffn.imagined import is_imagined
from versatileffn.ffn.plan import ReusePlan
from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView

Execution = Literal["auto", "masked", "packed", "recompute", "triton"]
Executor = Callable[[Tensor, FFNView, TokenWeights], Tensor]
logger = logging.getLogger(__name__)


class Choice(NamedTuple):
    """An executor, and why it was chosen.

    Args:
        name: what it is called in records.
        run: carries out a plan.
        reason: why it is this one.
        fallback: it isn't what was asked for, or what `auto` would mean to a user.
    """

    name: str
    run: Executor
    reason: str
    fallback: bool = False


def execute(
    hidden: Tensor, view: FFNView, plan: ReusePlan, execution: Execution = "auto"
) -> Tensor:
    """Carry out a plan on hidden states of any leading shape, [..., D] -> [..., D].

    Returns:
        (Y − H)/r, what the family adds to the residual stream.

    Raises:
        ConfigError: the execution asked for isn't valid here.
        PlanError: plan and hidden states differ in their leading shape.
    """
    hidden_MD, view, weights = flatten_tokens(hidden, view, plan)
    choice = select_executor(execution, hidden_MD, view, weights)
    _remember(execution, choice.name, choice.reason, choice.fallback)
    return choice.run(hidden_MD, view, weights).view_as(hidden)


def may_run_once(view: FFNView, execution: Execution) -> bool:
    """Whether `execute_once` may carry out what is known to be one loop for every token."""
    return (
        execution in ("auto", "packed", "recompute")
        and view.post_norm is None
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not _is_transformed()
    )


def execute_once(
    x: Tensor,
    view: FFNView,
    controller: Any,
    read: Tensor,
    learned: bool = False,
    width_gain: Tensor | None = None,
    execution: Execution = "auto",
) -> Tensor:
    """Carry out one loop for every token, where `may_run_once` allows it.

    Args:
        x: norm(H), [..., D].
        controller: says what that comes to, as `LinearController.one_loop` does.
        read: what it reads, [..., D].
        learned: the layer has gains of its own.
        width_gain: s, [1]; None means 1.

    Returns:
        (Y − H)/r, what the family adds to the residual stream.
    """
    compiled = compiled_one_loop(controller, read, learned, width_gain)
    if compiled is None:
        _remember(execution, "once", "one loop for every token, and nobody wants its plan")
        return run_once(x, view, controller.one_loop(read, learned, width_gain))
    _remember(execution, "once", "one loop for a few tokens: the compiled kernel weighs experts")
    return run_once(x, view, compiled)


def select_executor(
    execution: Execution, hidden_MD: Tensor, view: FFNView, weights: TokenWeights
) -> Choice:
    """Choose by the table above.

    Raises:
        ConfigError: what was asked for isn't valid here.
    """
    if execution == "masked":
        return Choice("masked", run_masked, "asked for")
    if execution == "triton":
        return _triton(hidden_MD, view, weights)
    if execution == "auto" and weights.uniform is not None:
        return Choice("masked", run_masked, "the same loops for every token: nothing to mask")
    masked = _why_masked(view, weights)
    if masked is None:
        return _packed(execution, view)
    reason, expected = masked
    if execution == "auto":
        return Choice("masked", run_masked, reason, fallback=not expected)
    raise ConfigError(
        f"execution={execution!r} is impossible here ({reason}): use execution='auto'"
    )


def _why_masked(view: FFNView, weights: TokenWeights) -> tuple[str, bool] | None:
    """Why no token may stop early, and whether that is no surprise; None if tokens may."""
    if not weights.hard:
        return "a soft plan mixes all loops: only loop_mix='hard' lets tokens stop", True
    if _is_transformed():
        return "torch.func or forward-mode differentiation wants to see every operation", False
    if _is_compiling():
        reason = why_no_operator(view)
        return None if reason is None else (f"under torch.compile, {reason}", False)
    if _is_recorded(weights):
        return "a graph is recorded, which must hold for other tokens too", True
    if torch.is_grad_enabled():
        reason = why_called(view)
        return None if reason is None else (f"in training, {reason}", False)
    return None


def _packed(execution: Execution, view: FFNView) -> Choice:
    """What lets tokens stop early."""
    if _is_compiling():
        return Choice("operator", run_operator, "a hard plan within torch.compile")
    if not torch.is_grad_enabled():
        if view.merges:
            return Choice("packed", run_packed, "a hard plan without gradients")
        return Choice("stepwise", run_stepwise, str(why_stepwise(view)))
    stepwise = why_stepwise(view)
    if stepwise is not None:
        return Choice("stepwise_training", run_stepwise_training, stepwise)
    if execution == "recompute":
        return Choice("recomputed", run_recomputed, "asked for")
    return Choice("packed_training", run_packed_training, "a hard plan with plain weights")


def _triton(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> Choice:
    """The kernels, or in training what `auto` takes.

    Raises:
        ConfigError: they aren't valid here.
    """
    if torch.is_grad_enabled() or _is_transformed():
        other = select_executor("auto", hidden_MD, view, weights)
        return other._replace(reason="the kernels have no gradients", fallback=True)
    reason = unsupported(hidden_MD, view, weights)
    if reason is not None:
        raise ConfigError(f"execution='triton' is impossible here ({reason}): use 'auto'")
    return Choice("triton", run_triton, "asked for")


def _is_compiling() -> bool:
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


def _is_recorded(weights: TokenWeights) -> bool:
    """Whether a graph is being recorded, which must not depend on the values of this plan."""
    loop_count = weights.loop_count
    if is_imagined(loop_count):
        return False
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or loop_count.is_meta
        or isinstance(loop_count, FakeTensor)
        or (loop_count.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation wants to see every operation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


_choices: set[tuple[str, str]] = set()


def execution_choices() -> list[dict[str, str]]:
    """Which executors this process has used so far and why, for a run's record.

    Returns:
        `executor` and `reason` of each distinct choice.
    """
    return [{"executor": name, "reason": reason} for name, reason in sorted(_choices)]


def forget_choices() -> None:
    """Start a record anew; what was logged is logged again."""
    _choices.clear()


@torch.compiler.assume_constant_result  # so that it is called while a graph is traced, not in it
def _remember(execution: Execution, name: str, reason: str, fallback: bool = False) -> None:
    """Record a choice, and say so the first time that it isn't what was expected."""
    if (name, reason) in _choices:
        return
    _choices.add((name, reason))
    if fallback:
        logger.warning("execution=%r falls back to %r: %s", execution, name, reason)
