"""Which executor carries out a plan.

| asked for     | circumstances                                              | executor        |
|---------------|------------------------------------------------------------|-----------------|
| `auto`        | eager, hard plan, gradients off                            | packed          |
| `auto`        | eager, hard plan, gradients on, plain weights              | packed_training |
| `auto`        | torch.compile, hard plan, plain weights, RMSNorm, SwiGLU   | operator        |
| `auto`        | anything else, and under torch.func                        | masked          |
| `masked`      | always valid                                               | masked          |
| `packed`      | as `auto`, but a ConfigError instead of masked             |                 |
| `recompute`   | as `packed`, but training keeps states only                | recomputed      |
| `triton`      | gradients off, CUDA, what the kernels support              | triton          |
| `triton`      | gradients off otherwise                                    | a ConfigError   |
| `triton`      | gradients on, or under torch.func                          | as `auto`       |

Packed training, the operator's too, has no second derivatives and says so; masked has them.
Weights are plain when each linear is an unwrapped, bias-free `nn.Linear` without hooks: no adapter,
no quantization, no offloading. The operator always keeps states only in training. A recorded graph
other than torch.compile's (export, tracing, CUDA graphs) must hold for other tokens too, so it
takes static shapes: every token then runs all L loops.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from versatileffn.errors import ConfigError, PlanError
from versatileffn.execution.kernels.custom_op import run_triton
from versatileffn.execution.kernels.support import unsupported
from versatileffn.execution.masked import run_masked
from versatileffn.execution.operators import is_operable, run_operator
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
    """Choose by the table above, all but what runs the Triton kernels.

    Raises:
        ConfigError: `packed` or `recompute` was asked for where it isn't valid.
    """
    chosen: Executor | None = None
    if execution == "masked" or not plan.hard or _is_transformed():
        chosen = None
    elif torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
        chosen = run_operator if is_operable(norm, mlp) else None
    elif _is_recorded(plan):
        chosen = None
    elif not torch.is_grad_enabled():
        chosen = run_packed
    elif reads_plain_weights(norm, mlp):
        chosen = run_recomputed if execution == "recompute" else run_packed_training
    else:
        chosen = None
    if chosen is not None:
        return chosen
    if execution not in ("packed", "recompute"):
        return run_masked
    raise ConfigError(
        f"execution={execution!r} needs loop_mix='hard', no export, tracing or torch.func, in "
        "training plain linears without biases or adapters, and under torch.compile these, an "
        "RMSNorm and SwiGLU: use execution='auto'"
    )


def _is_recorded(plan: ReusePlan) -> bool:
    """Whether a graph is being recorded, which must not depend on the values of this plan."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or plan.loop_count.is_meta
        or isinstance(plan.loop_count, FakeTensor)
        or (plan.loop_count.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation wants to see every operation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def execute(
    hidden: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan, execution: Execution = "auto"
) -> Tensor:
    """Carry out a plan on hidden states of any leading shape, [..., D] -> [..., D].

    Raises:
        ConfigError: the execution asked for isn't valid here.
        PlanError: plan and hidden states differ in their leading shape.
    """
    if plan.loop_count.shape != hidden.shape[:-1]:
        raise PlanError(
            f"plan for tokens of shape {tuple(plan.loop_count.shape)} given hidden states of shape "
            f"{tuple(hidden.shape)}: the leading dimensions must agree"
        )
    hidden_MD, plan = hidden.reshape(-1, hidden.shape[-1]), plan.flatten()
    run: Executor = run_triton
    if execution != "triton" or torch.is_grad_enabled() or _is_transformed():
        run = select_executor(execution, plan, norm, mlp)
    elif reason := unsupported(hidden_MD, norm, mlp, plan):
        raise ConfigError(f"execution='triton' is impossible here ({reason}): use 'auto'")
    return run(hidden_MD, norm, mlp, plan).view_as(hidden)
