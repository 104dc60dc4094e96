"""What `gpu.py` measures; each case checks that outputs agree before it times them.

Legend: M tokens, D d_model, F d_hidden, E mean loops.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.distributions import SHARES
from benchmarks.layers import MATRICES, Setup, check_equal, set_up
from versatileffn.analysis.timing import Budget, Timings, measure, spread, waits_for
from versatileffn.execution.kernels import launch
from versatileffn.execution.kernels.custom_op import run_triton
from versatileffn.execution.kernels.support import unsupported
from versatileffn.execution.kernels.tiles import DecodeTile, timing_tiles

DTYPE = "bfloat16"
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest relative error, in the Frobenius norm: tens of roundings in float32, and of the 8-bit
mantissas of bfloat16 through four loops."""
GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
"""The same for gradients: those of the loop predictor are differences of rounded sums."""
DECODE_TILES = {
    "n16-k256-s4": DecodeTile(16, 256, 16, 256, 4),
    "n16-k128-s4": DecodeTile(16, 128, 16, 128, 4),
    "n32-k128-s4": DecodeTile(32, 128, 32, 128, 4),
    "n16-k256-s8": DecodeTile(16, 256, 16, 256, 8),
    "n16-k256-s2": DecodeTile(16, 256, 16, 256, 2),
}


class Bench:
    """What all parts share.

    Args:
        dry: tiny sizes on CPU, to run the code and measure nothing.
    """

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.device = "cpu" if dry else "cuda"
        self.dtype = "float32" if dry else DTYPE
        self.wait = waits_for(self.device)
        self.budget = Budget(rounds=2, seconds=1, least=1) if dry else Budget(15, 4.0, 5, warmup=2)
        self.repeats = 1 if dry else 10
        self.peak: float | None = None

    def time(
        self, subjects: dict[str, Callable[[], object]], repeats: int | None = None
    ) -> Timings:
        """Seconds of one call, from several in a row: the host may run ahead, as in a model."""
        times = repeats or self.repeats

        def several(call: Callable[[], object]) -> None:
            for _ in range(times):
                call()

        found = measure(
            {n: partial(several, c) for n, c in subjects.items()}, self.budget, self.wait
        )
        return Timings({n: [s / times for s in seconds] for n, seconds in found.seconds.items()})

    def captured(self, call: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """A CUDA graph's replay, and the tensor it writes; the call itself in a dry run."""
        output = call()
        if self.dry:
            return call, output
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        graph.replay()
        self.wait()
        return graph.replay, output


def by_triton(setup: Setup) -> Callable[[], Tensor]:
    """The kernels on a setup's plan.

    Raises:
        RuntimeError: they don't support it, with the reason.
    """
    layer, plan = setup.layer, setup.plan()
    reason = unsupported(setup.hidden_MD, layer.norm, layer.mlp, plan)
    if reason:
        raise RuntimeError(f"the kernels don't take this: {reason}")
    return partial(run_triton, setup.hidden_MD, layer.norm, layer.mlp, plan)


def ratios(times: Timings, under: str, factor: float = 1.0) -> dict[str, Any]:
    """Each subject's spread of time over factor × another's."""
    return {n: times.ratio(n, under, factor)._asdict() for n in times.seconds if n != under}


def peak(bench: Bench) -> dict[str, Any]:
    """The fastest large matrix product, in FLOP/s."""
    rates = {}
    for size in (64,) if bench.dry else (4096, 8192, 16384):
        a = torch.randn(size, size, device=bench.device, dtype=getattr(torch, bench.dtype))
        seconds = bench.time({"matmul": partial(torch.matmul, a, a)}).seconds["matmul"]
        rates[size] = 2 * size**3 / spread(seconds).median
    bench.peak = max(rates.values())
    return {"flops_per_second": bench.peak, "by_size": rates}


@torch.no_grad()
def inference(bench: Bench, d_model: int, mean: str) -> dict[str, Any]:
    """One layer on many tokens: packed, masked and the kernels over E × dense."""
    tokens = 40 if bench.dry else 16384
    setup = set_up(d_model, 4 * d_model, tokens, SHARES[mean], bench.dtype, bench.device)
    plan = setup.plan()
    triton = by_triton(setup)
    if not bench.dry:
        with timing_tiles():
            triton()
    replay, replayed = bench.captured(triton)
    names = ("dense", "packed", "masked")
    subjects: dict[str, Callable[[], object]] = {n: partial(setup.run, n, plan) for n in names}
    results = {n: [setup.run(n, plan)] for n in names[1:]}
    results |= {"triton": [triton()], "triton-graph": [replayed.clone()]}
    errors = check_equal(results, "packed", TOLERANCE[bench.dtype])
    times = bench.time(subjects | {"triton": triton, "triton-graph": replay})
    executed = plan.loop_count.sum().item()
    flops = 2 * MATRICES * d_model * 4 * d_model * executed
    rates = {
        n: flops / spread(times.seconds[n]).median for n in ("packed", "triton", "triton-graph")
    }
    expected = executed / tokens
    return {
        "tokens": tokens, "expected_loops": expected, "errors": errors,
        "seconds": times.to_dict(),
        "over_expected_loops_times_dense": ratios(times, "dense", expected),
        "flops_per_second": rates,
        "share_of_peak": {n: rate / (bench.peak or 1.0) for n, rate in rates.items()},
    }  # fmt: skip


@torch.no_grad()
def decode(bench: Bench, tokens: int, tile: str) -> dict[str, Any]:
    """A pass through twelve layers, so that each finds its weights cold: 1 to 4 loops, dense."""
    d_model, num_layers = (32, 2) if bench.dry else (1024, 12)
    before = launch.DECODE
    launch.DECODE = DECODE_TILES[tile]
    try:
        subjects: dict[str, Callable[[], object]] = {}
        errors = {}
        for loops in range(1, 5):
            shares = [float(loop == loops) for loop in range(1, 5)]
            layers = [
                set_up(d_model, 4 * d_model, tokens, shares, bench.dtype, bench.device, seed=seed)
                for seed in range(num_layers)
            ]
            through = partial(_through, layers, [setup.plan() for setup in layers], "triton")
            packed = partial(_through, layers, [setup.plan() for setup in layers], "packed")
            subjects[f"{loops} loops"], output = bench.captured(through)
            found = check_equal(
                {"packed": [packed()], "triton": [output.clone()]}, "packed", TOLERANCE[bench.dtype]
            )
            errors[f"{loops} loops"] = found["triton"]
            if loops == 1:
                subjects["dense"], _ = bench.captured(
                    partial(_through, layers, [None] * num_layers, "dense")
                )
        times = bench.time(subjects)
    finally:
        launch.DECODE = before
    return {
        "tokens": tokens, "layers": num_layers, "tile": tile, "errors": errors,
        "seconds": times.to_dict(), "over_1_loop": ratios(times, "1 loops"),
    }  # fmt: skip


def _through(layers: list[Setup], plans: list[Any], executor: str) -> Tensor:
    hidden_MD = layers[0].hidden_MD
    for setup, plan in zip(layers, plans, strict=True):
        if executor == "triton":
            hidden_MD = run_triton(hidden_MD, setup.layer.norm, setup.layer.mlp, plan)
        else:
            hidden_MD = replace(setup, hidden_MD=hidden_MD).run(executor, plan)
    return hidden_MD


def training(bench: Bench, mean: str) -> dict[str, Any]:
    """One layer's training step under bfloat16 autocast, over the dense one's."""
    d_model, tokens = (32, 40) if bench.dry else (1024, 16384)
    setup = set_up(
        d_model, 4 * d_model, tokens, SHARES[mean], bench.dtype, bench.device, training=True
    )
    names = ("dense", "masked", "packed", "recompute")
    gradients = {
        n: [g for g in setup.train_step(n) if g is not None] for n in names if n != "dense"
    }
    errors = check_equal(gradients, "masked", GRADIENT_TOLERANCE[bench.dtype])
    del gradients
    memory = {}
    for name in () if bench.dry else names:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        setup.train_step(name)
        memory[name] = torch.cuda.max_memory_allocated() - held
    times = bench.time({n: partial(setup.train_step, n) for n in names}, repeats=3)
    return {
        "tokens": tokens, "errors": errors, "seconds": times.to_dict(), "peak_bytes": memory,
        "over_dense": ratios(times, "dense"), "over_masked": ratios(times, "masked"),
    }  # fmt: skip
