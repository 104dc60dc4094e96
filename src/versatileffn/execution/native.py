"""The compiled kernel for one loop, if somebody has built it: `versatileffn doctor --build`.

It chooses experts and weighs their neurons in one call, where PyTorch takes ten operators. That
counts where a token is decoded at a time; longer inputs are left to the operators.

Legend: M tokens (or any leading shape), D d_model, F d_hidden, N num_experts, K top_k.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from versatileffn.errors import ResourceError
from versatileffn.ffn.controller import LinearController
from versatileffn.ffn.wide import WideLinear

SOURCE = Path(__file__).with_name("one_loop.c")
MOST_EXPERTS, MOST_TOKENS = 256, 128
"""Experts that the source has room for; tokens beyond which PyTorch's operators are as fast."""
STORED = (torch.float32, torch.bfloat16)
logger = logging.getLogger(__name__)


class CompiledOneLoop(NamedTuple):
    """What an `OneLoop` is, its experts not chosen yet.

    Args:
        kernel: `weigh_once` of the source.
        hidden: what the router reads, [M, D].
        router_ND: its weight, float32.
        top_k: K.
        rest: the weight of neurons that no selected expert has.
        share: λ.
        gain: s, [1]; None means 1.
    """

    kernel: Callable[..., None]
    hidden: Tensor
    router_ND: Tensor
    top_k: int
    rest: float
    share: float
    gain: Tensor | None

    def weigh(self, a_MF: Tensor) -> Tensor:
        """[(1 − λ) + λσ + λ·s·m] ⊙ a₁, [M, F], in the memory of a₁ where that is contiguous."""
        if a_MF.dtype not in STORED:
            raise TypeError(f"the compiled kernel knows no {a_MF.dtype}: give the FFN one dtype")
        a_MF, hidden = a_MF.contiguous(), self.hidden.to(a_MF.dtype).contiguous()
        num_experts, d_model = self.router_ND.shape
        self.kernel(
            a_MF.data_ptr(), hidden.data_ptr(), self.router_ND.data_ptr(),
            a_MF.dtype == torch.bfloat16, hidden.numel() // d_model, d_model, num_experts,
            a_MF.shape[-1] // num_experts, self.top_k, self.rest,
            self.share if self.gain is None else self.share * self.gain.item(),
        )  # fmt: skip
        return a_MF


def compiled_one_loop(
    controller: nn.Module, hidden: Tensor, learned: bool, width_gain: Tensor | None
) -> CompiledOneLoop | None:
    """What `controller.one_loop` gives, left to the kernel; None where that isn't its affair.

    Args:
        controller: without hooks.
        hidden, learned, width_gain: as `LinearController.one_loop`'s.
    """
    kernel = load()
    if kernel is None or not isinstance(controller, LinearController):
        return None
    if type(hidden) is not Tensor or torch._C._is_tracing() or _get_current_dispatch_mode():
        return None  # somebody wants to see every operation, or there is no memory behind it
    router, slices = controller._modules.get("router"), controller.slices
    if type(router) is not WideLinear or slices is None or controller.router_bias is not None:
        return None
    weight = router._parameters.get("weight")  # None where something computes it
    if not (
        type(weight) is nn.Parameter
        and weight.dtype is torch.float32
        and weight.is_contiguous()
        and slices.tiles
        and slices.num_experts <= MOST_EXPERTS
        and hidden.is_cpu
        and hidden.dtype in STORED
        and hidden.numel() <= MOST_TOKENS * hidden.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    ):
        return None
    rest, share = controller.shares_of_one_loop(learned)
    top_k = controller.config.top_k
    return CompiledOneLoop(kernel, hidden, weight, top_k, rest, share, width_gain)


@cache
def load() -> Callable[..., None] | None:
    """The kernel, if it has been built here; looked for once in a process."""
    path = kernel_file()
    if not os.path.isfile(path):  # which, unlike Path.is_file, doesn't raise
        return None
    try:
        kernel = ctypes.CDLL(str(path)).weigh_once
    except OSError as error:
        logger.warning(
            "%s can't be loaded, PyTorch's operators take its place (%s): build it again by "
            "`versatileffn doctor --build`", path, error,
        )  # fmt: skip
        return None
    pointer, count, share = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    kernel.argtypes, kernel.restype = [pointer] * 3 + [count] * 6 + [share] * 2, None
    return kernel


def kernel_file() -> Path:
    """Where the built kernel is, or would be: one for each source, system and kind of machine."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    kind = f"{platform.system()}-{platform.machine()}".lower()
    return Path(cache_home) / "versatileffn" / f"one_loop-{kind}-{digest}.so"


def build() -> Path:
    """Compile the kernel, a second; this process and later ones then use it.

    Raises:
        ResourceError: there is no C compiler, it fails, or the folder can't be written.
    """
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise ResourceError("there is no C compiler: install gcc or clang, or name one in CC")
    path = kernel_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            command = [compiler, "-O3", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True)
            os.replace(made, path)  # whole, or not at all
    except subprocess.CalledProcessError as error:
        raise ResourceError(f"{compiler} can't compile {SOURCE}: {error.stderr.strip()}") from None
    except OSError as error:
        raise ResourceError(f"{path} can't be written ({error}): set XDG_CACHE_HOME") from None
    load.cache_clear()
    return path
