"""Where the kernels can run: on a CUDA device, or in Triton's interpreter.

The interpreter must be chosen before Triton is imported for the first time, which other tests may
have done. So the default suite starts it in a process of its own (`test_in_interpreter.py`).
"""

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETING else "cuda"
NOT_HERE = None
if find_spec("triton") is None:
    NOT_HERE = "Triton isn't installed"
elif not INTERPRETING and not torch.cuda.is_available():
    NOT_HERE = "no CUDA device; test_in_interpreter.py runs these in Triton's interpreter"


@pytest.fixture
def device() -> str:
    if NOT_HERE:
        pytest.skip(NOT_HERE)
    return DEVICE


@pytest.fixture(autouse=True)
def rounding_as_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter cuts float32 off to bfloat16; a GPU rounds to the nearest."""
    if not INTERPRETING:
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.cast_impl

    def cast(self, source, target):
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return original(self, source, target)
        rounded = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.int16)
        return TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)


@pytest.fixture
def interpreter(device: str) -> None:
    if not INTERPRETING:
        pytest.skip("counts operations in Triton's interpreter")


@pytest.fixture
def cuda(device: str) -> None:
    if device != "cuda":
        pytest.skip("no CUDA device")


@pytest.fixture(params=["few", "many"])
def path(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to launch, whatever the number of tokens."""
    from versatileffn.execution.kernels import launch

    if request.param == "many":
        monkeypatch.setattr(launch, "DECODE_TOKENS", 0)
    return request.param


@pytest.fixture
def poison():
    """Every new tensor is NaN, or the largest integer, until something writes it."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before
