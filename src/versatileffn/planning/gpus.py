"""GPUs by name: their memory, and how fast they multiply matrices.

Source: NVIDIA's and AMD's data sheets: memory, and dense bfloat16 (without sparsity) per GPU.
"""

from dataclasses import dataclass

from versatileffn.errors import ConfigError
from versatileffn.ffn.values import suggestion

UTILISATION = 0.4
"""Share of the peak that a good training run reaches; an assumption."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Args:
        name: as it is called here.
        gib: memory, GiB; what vendors call GB.
        tflops: peak, dense bfloat16, 10¹² FLOPs per second.
    """

    name: str
    gib: float
    tflops: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a10", 24, 125),
        Gpu("l4", 24, 121),
        Gpu("l40s", 48, 362),
        Gpu("a100-40", 40, 312),
        Gpu("a100", 80, 312),
        Gpu("h100-pcie", 80, 756),
        Gpu("h100", 80, 989),
        Gpu("h200", 141, 989),
        Gpu("b200", 180, 2250),
        Gpu("mi300x", 192, 1307),
    )
}


def find_gpu(name: str | None, gib: float | None, tflops: float | None) -> Gpu:
    """A GPU of the table, or another by its numbers.

    Args:
        name: in the table, in any case; None for another one.
        gib, tflops: take the place of the table's.

    Raises:
        ConfigError: the name is unknown, or another one's numbers are missing.
    """
    if name is None and (gib is None or tflops is None):
        raise ConfigError(f"which GPU? give --gpu ({', '.join(GPUS)}), or --memory and --tflops")
    if name is not None and name.lower() not in GPUS:
        raise ConfigError(
            f"--gpu {name} is unknown; {suggestion(name.lower(), list(GPUS))}; any other by "
            "--memory (GiB) and --tflops, without --gpu"
        )
    known = Gpu("other", 0, 0) if name is None else GPUS[name.lower()]
    return Gpu(known.name, gib or known.gib, tflops or known.tflops)
