"""Whether the kernels may carry out a plan, and what they read from its modules.

Nothing here imports Triton.
"""

import os
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from versatileffn.execution.norms import RMSNorm
from versatileffn.execution.plain import why_called
from versatileffn.ffn.mlp import gelu_tanh, relu2
from versatileffn.ffn.token_weights import TokenWeights
from versatileffn.ffn.view import FFNView

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


def unsupported(hidden_MD: Tensor, view: FFNView, weights: TokenWeights) -> str | None:
    """Why `run_triton` may not carry out a plan here; None if it may.

    Looks at shapes, dtypes and modules, never at values: nothing waits for the device.
    """
    for reason, holds in (
        ("Triton isn't installed", not HAS_TRITON),
        ("hidden states aren't on a CUDA device", not (hidden_MD.is_cuda or INTERPRETING)),
        ("a soft plan mixes all loops", not weights.hard),
        ("gradients are on", torch.is_grad_enabled()),
        ("max_loops is large", weights.max_loops > MAX_LOOPS),
        ("d_model is large", hidden_MD.shape[-1] > MAX_MODEL),
        ("the dtype has no kernel", hidden_MD.dtype not in DTYPES),
        ("autocast is on", torch.is_autocast_enabled(hidden_MD.device.type)),
        ("each loop has a down-projection of its own", not view.merges),
        ("the residual has a scale", view.scale != 1),
        ("gate and up are fused", view.gated and len(view.proj) == 1),
        ("the activation has no kernel", activation_name(view) is None),
        ("the norm isn't an RMSNorm that is known", RMSNorm.of(view.norm) is None),
    ):
        if holds:
            return reason
    called = why_called(view)
    if called is not None:
        return called
    linears: list[Any] = view.linears
    if any(linear.bias is not None for linear in linears):
        return "a linear map has a bias"
    matrices = [linear.weight for linear in linears]
    if any(w.dtype != hidden_MD.dtype or w.device != hidden_MD.device for w in matrices):
        return "weights and hidden states differ in dtype or device"
    if not all(weight.is_contiguous() for weight in matrices):
        return "a weight isn't contiguous"
    return None


def activation_name(view: FFNView) -> str | None:
    """The FFN's activation as `ffn.mlp.ACTIVATIONS` calls it; None for one without a kernel."""
    act = view.act
    if isinstance(act, nn.GELU):
        return "gelu_tanh" if act.approximate == "tanh" else "gelu"
    if isinstance(act, nn.Module):
        return MODULES.get(type(act).__name__)
    return next((name for function, name in FUNCTIONS.items() if function is act), None)
