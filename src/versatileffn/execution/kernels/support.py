"""Whether the kernels may carry out a plan, and what they read from its modules.

Nothing here imports Triton.
"""

import os
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.execution.norms import RMSNorm
from versatileffn.execution.plain import reads_plain_weights
from versatileffn.ffn.dense import FeedForward, Norm, gelu_tanh, linears, relu2
from versatileffn.ffn.plan import ReusePlan

# Read once: torch.compile goes through `unsupported`, and can't look at files.
HAS_TRITON = find_spec("triton") is not None
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_LOOPS = 16
"""The counting sort goes through the loop counts one by one."""
MAX_MODEL = 16384
"""One program normalizes one token."""

FUNCTIONS = {F.silu: "silu", F.gelu: "gelu", gelu_tanh: "gelu_tanh", F.relu: "relu", relu2: "relu2"}
MODULES = {"SiLU": "silu", "SiLUActivation": "silu", "ReLU": "relu", "GELUTanh": "gelu_tanh"}


def unsupported(hidden_MD: Tensor, norm: Norm, mlp: FeedForward, plan: ReusePlan) -> str | None:
    """Why `run_triton` may not carry out this plan here; None if it may.

    Looks at shapes, dtypes and modules, never at values: nothing waits for the device.
    """
    for reason, holds in (
        ("Triton isn't installed", not HAS_TRITON),
        ("hidden states aren't on a CUDA device", not (hidden_MD.is_cuda or INTERPRETING)),
        ("a soft plan mixes all loops", not plan.hard),
        ("gradients are on", torch.is_grad_enabled()),
        ("max_loops is large", plan.max_loops > MAX_LOOPS),
        ("d_model is large", hidden_MD.shape[-1] > MAX_MODEL),
        ("the dtype has no kernel", hidden_MD.dtype not in DTYPES),
        ("autocast is on", torch.is_autocast_enabled(hidden_MD.device.type)),
        ("the activation has no kernel", activation_name(mlp) is None),
        ("the norm isn't a plain RMSNorm with a weight", RMSNorm.of(norm) is None),
        ("linears or norm aren't plain, or have biases", not reads_plain_weights(norm, mlp)),
    ):
        if holds:
            return reason
    weights = [linear.weight for linear in linears(mlp)]
    if any(w.dtype != hidden_MD.dtype or w.device != hidden_MD.device for w in weights):
        return "weights and hidden states differ in dtype or device"
    if not all(weight.is_contiguous() for weight in weights):
        return "a weight isn't contiguous"
    return None


def activation_name(mlp: FeedForward) -> str | None:
    """The FFN's activation as `ffn.dense.ACTIVATIONS` calls it; None for one without a kernel."""
    act = mlp.act_fn
    if isinstance(act, nn.GELU):
        return "gelu_tanh" if act.approximate == "tanh" else "gelu"
    if isinstance(act, nn.Module):
        return MODULES.get(type(act).__name__)
    return next((name for function, name in FUNCTIONS.items() if function is act), None)
