"""Runs of `train` in one of several processes, one after the other, with comparable noise.

The processes of a run draw noise from generators of their own, so that two of them can't draw what
one does. Here each micro-batch's noise depends on its tokens alone, whoever takes it.
"""

import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from versatileffn.training import run, start
from versatileffn.training.config import load_config
from versatileffn.training.trainer import ReuseTrainer


@contextmanager
def noise_by_tokens() -> Iterator[None]:
    """Seed each micro-batch with the checksum of its tokens."""
    step = ReuseTrainer.training_step

    def seeded(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        torch.manual_seed(zlib.crc32(inputs["input_ids"].cpu().numpy().tobytes()))
        return step(self, model, inputs, *rest)

    ReuseTrainer.training_step = seeded  # type: ignore[method-assign]
    try:
        yield
    finally:
        ReuseTrainer.training_step = step  # type: ignore[method-assign]


def never_whole(*_: Any) -> None:
    """Stands in for `build_model`."""
    raise AssertionError("a process has built the whole model")


def main() -> None:
    """Train by the files that are the arguments."""
    torch.set_num_threads(1)
    start.build_model = never_whole
    with noise_by_tokens():
        for path in sys.argv[1:]:
            run.train(load_config(path))
