"""φ inside a kernel: act(gate)·up, or act(up)."""

# mypy: allow-untyped-defs
# Triton reads annotations of kernel arguments as types of its own.

import triton
import triton.language as tl


@triton.jit
def activation(x, ACT: tl.constexpr):
    """One of `ffn.mlp.ACTIVATIONS`, by name, in float32."""
    if ACT == "silu":
        y = x * tl.sigmoid(x)
    elif ACT == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        # (1 + tanh z) / 2 is the sigmoid of 2z
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACT == "relu":
        y = tl.maximum(x, 0.0)
    else:
        tl.static_assert(ACT == "relu2")
        positive = tl.maximum(x, 0.0)
        y = positive * positive
    return y
