"""Which executor carries out a plan.

| asked for | plan and circumstances                          | executor |
|-----------|--------------------------------------------------|----------|
| `auto`    | hard, gradients off, no graph being recorded     | packed   |
| `auto`    | anything else                                    | masked   |
| `masked`  | always valid                                     | masked   |
| `packed`  | hard, gradients off, no graph being recorded     | packed   |
| `packed`  | hard, gradients on, no graph, plain weights      | packed_training |
| `packed`  | anything else                                    | a ConfigError |

A recorded graph (torch.compile, export, tracing, CUDA graphs) must hold for other tokens too, so it
takes static shapes: every token then runs all L loops.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from versatileffn.errors import ConfigError
from versatileffn.execution.masked import run_masked
from versatileffn.execution.packed import run_packed
from versatileffn.execution.packed_training import run_packed_training, run_recomputed
from versatileffn.execution.plain import reads_plain_weights
from versatileffn.ffn.config import Execution
from versatileffn.ffn.dense import FeedForward, Norm
from versatileffn.ffn.plan import ReusePlan

Executor = Callable[[Tensor, Norm, FeedForward, ReusePlan], Tensor]


def select_executor(
    execution: Execution, plan: ReusePlan, norm: Norm, mlp: FeedForward
) -> Executor:
    """Choose by the table above.

    Raises:
        ConfigError: `packed` was asked for where it isn't valid.
    """
    may_pack = plan.hard and not _is_recorded(plan)
    if may_pack and not torch.is_grad_enabled() and execution != "masked":
        return run_packed
    if execution not in ("packed", "recompute"):
        return run_masked
    if may_pack and reads_plain_weights(norm, mlp):
        return run_packed_training if execution == "packed" else run_recomputed
    raise ConfigError(
        "execution='packed' needs loop_mix='hard' and eager mode, and in training also plain "
        "linears without biases or adapters: use execution='auto'"
    )


def _is_recorded(plan: ReusePlan) -> bool:
    """Whether a graph is being recorded, which must not depend on the values of this plan."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or plan.loop_count.is_meta
        or (plan.loop_count.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def execute(
    hidden: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan, execution: Execution = "auto"
) -> Tensor:
    """Carry out a plan on hidden states of any leading shape, [..., D] -> [..., D].

    Raises:
        ValueError: plan and hidden states differ in their leading shape.
    """
    if plan.loop_count.shape != hidden.shape[:-1]:
        raise ValueError(
            f"plan for tokens of shape {tuple(plan.loop_count.shape)} given hidden states of shape "
            f"{tuple(hidden.shape)}: the leading dimensions must agree"
        )
    run = select_executor(execution, plan, norm, mlp)
    return run(hidden.reshape(-1, hidden.shape[-1]), norm, mlp, plan.flatten()).view_as(hidden)
