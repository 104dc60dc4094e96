"""The comparisons that can be asked for: the paper's tables, the demo's, and the language suite."""

from dataclasses import dataclass

from versatileffn.ffn.config import KLoop, Versatile
from versatileffn.reproduce.arms import PAPER, Arm, from_scratch
from versatileffn.reproduce.language import SUITE

DENSE, LOOP_2, LOOP_4, REAL_EXPERTS, VERSATILE, LEARNED = PAPER
CONSISTENT = Arm(
    "versatile-consistent",
    "VersatileFFN, shallow exits held to deep ones",
    VERSATILE.ffn,
    optim={"consistency": {"coef": 1.0}},
)
LOOP_6 = Arm("6-loop", "6-Loop", KLoop(num_loops=6))
WIDTH = Arm("width", "Width only, experts 8-2", Versatile(fusion="width"))


@dataclass(frozen=True)
class Table:
    """One comparison.

    Args:
        title: what a person reads.
        arms: beside the base.
        capped: loss is measured under each budget of loops, too.
    """

    title: str
    arms: tuple[Arm, ...]
    capped: bool = False


def _experts(name: str, title: str, num_experts: int, top_k: int, **knobs: str) -> Arm:
    """N-K experts of F/N neurons."""
    ffn = Versatile.from_dict({"num_experts": num_experts, "top_k": top_k, **knobs})
    return Arm(f"{name}-{num_experts}-{top_k}", f"{title}, experts {num_experts}-{top_k}", ffn)


TABLES = {
    "demo": Table("The paper's protocol", PAPER),
    "reuse": Table("Does reuse pay on language", SUITE),
    "budgets": Table("What a budget of loops costs", (DENSE, VERSATILE, CONSISTENT), capped=True),
    "1": Table("Table 1: the main result", (*PAPER[:3], LOOP_6, *PAPER[3:])),
    "3": Table(
        "Table 3: width, depth, and how they meet",
        (
            DENSE,
            WIDTH,
            Arm("depth", "Depth only", Versatile(fusion="depth")),
            Arm("average", "Width and depth, averaged", Versatile(fusion="average")),
            VERSATILE,
            LEARNED,
        ),
    ),
    "4": Table(
        "Table 4: how many loops, how many experts",
        (
            DENSE,
            Arm("loops-2", "VersatileFFN, at most 2 loops", Versatile(max_loops=2)),
            VERSATILE,
            Arm("loops-6", "VersatileFFN, at most 6 loops", Versatile(max_loops=6)),
            _experts("experts", "VersatileFFN", 8, 4),
            _experts("experts", "VersatileFFN", 16, 4),
        ),
    ),
    "5": Table(
        "Table 5: from scratch",
        (from_scratch(REAL_EXPERTS), from_scratch(LOOP_4), from_scratch(VERSATILE)),
    ),
    "figure-3": Table(
        "Figure 3: width alone and depth alone",
        (
            DENSE,
            LOOP_2,
            LOOP_4,
            LOOP_6,
            _experts("width", "Width only", 4, 1, fusion="width"),
            WIDTH,
            _experts("width", "Width only", 8, 4, fusion="width"),
            _experts("width", "Width only", 16, 4, fusion="width"),
        ),
    ),
}
"""By name; the dense control is in each whose models are continued. The paper has it in Figure 3
alone, and without it most of a difference is the second pass over the data. It prints no number for
learned gains, which are ours."""
