"""The language suite: does reuse pay where parameters, not data, are the limit?

What counts as paying was fixed before the first run: `results/language/criterion.md`.
"""

from versatileffn.ffn.config import Dense, Versatile
from versatileffn.reproduce.arms import PAPER, Arm, from_scratch

LOOP_CURRICULUM = {"loop_curriculum": {"share": 0.4}}
"""The option that won the depth experiment's pilot: L opens over this share of the steps."""
DENSE, LOOP_2, LOOP_4, REAL_EXPERTS, VERSATILE, LEARNED = PAPER
VERSATILE_CURRICULUM = Arm(
    "versatile-curriculum", "VersatileFFN, loop curriculum", Versatile(), optim=LOOP_CURRICULUM
)
LEARNED_CURRICULUM = Arm(
    "versatile-learned-curriculum",
    "VersatileFFN (learned gains), loop curriculum",
    Versatile(reuse_gains="learned"),
    optim=LOOP_CURRICULUM,
)
# A gain that starts at 0 is the exact start of a conversion; from scratch there is nothing to keep.
WHOLE = Versatile(reuse_gains="learned", gain_init=1.0)
LEARNED_WHOLE = Arm("versatile-learned", "VersatileFFN (learned gains from 1)", WHOLE)
LEARNED_WHOLE_CURRICULUM = Arm(
    "versatile-learned-curriculum",
    "VersatileFFN (learned gains from 1), loop curriculum",
    WHOLE,
    optim=LOOP_CURRICULUM,
)
WIDE_4 = Arm("scratch-dense-x4", "Dense, FFN 4 × as wide, from scratch", Dense(), None, width=4)

SUITE = (  # what says most stands first, for whoever stops early
    from_scratch(LOOP_4),
    from_scratch(VERSATILE),
    from_scratch(VERSATILE_CURRICULUM),
    WIDE_4,
    DENSE,
    LOOP_4,
    VERSATILE,
    VERSATILE_CURRICULUM,
    LEARNED,
    LEARNED_CURRICULUM,
    from_scratch(LEARNED_WHOLE_CURRICULUM),
    from_scratch(LEARNED_WHOLE),
    from_scratch(LOOP_2),
    from_scratch(REAL_EXPERTS),
    LOOP_2,
    REAL_EXPERTS,
    Arm("scratch-dense-longer", "Dense, 3 × the tokens, from scratch", Dense(), None, budget=3),
    Arm("dense-x4", "Dense, FFN 4 × as wide, continued", Dense(), WIDE_4.name, width=4),
    Arm("scratch-dense-x2", "Dense, FFN 2 × as wide, from scratch", Dense(), None, width=2),
    Arm(
        "scratch-versatile-learned-0",
        "VersatileFFN (learned gains from 0), from scratch",
        LEARNED.ffn,
        None,
    ),
)
