"""Which executor carries out a plan.

| asked for | plan and circumstances                          | executor |
|-----------|--------------------------------------------------|----------|
| `auto`    | hard, no gradients needed, not being traced      | packed   |
| `auto`    | anything else                                    | masked   |
| `masked`  | always valid                                     | masked   |
| `packed`  | hard and no gradients needed, else a ConfigError | packed   |
"""

from collections.abc import Callable

import torch
from torch import Tensor

from versatileffn.errors import ConfigError
from versatileffn.execution.masked import run_masked
from versatileffn.execution.packed import run_packed
from versatileffn.ffn.config import Execution
from versatileffn.ffn.dense import FeedForward, Norm
from versatileffn.ffn.plan import ReusePlan

Executor = Callable[[Tensor, Norm, FeedForward, ReusePlan], Tensor]


def select_executor(execution: Execution, plan: ReusePlan) -> Executor:
    """Choose by the table above.

    Raises:
        ConfigError: `packed` was asked for where it isn't valid.
    """
    packed_is_valid = plan.hard and not torch.is_grad_enabled()
    if execution == "packed":
        if not packed_is_valid:
            raise ConfigError(
                "execution='packed' is for inference with hard loops: use torch.no_grad(), "
                "loop_mix='hard', or execution='auto'"
            )
        return run_packed
    if execution == "auto" and packed_is_valid and not torch.compiler.is_compiling():
        return run_packed
    return run_masked


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
    run = select_executor(execution, plan)
    return run(hidden.flatten(0, -2), norm, mlp, plan.flatten()).view_as(hidden)
