"""The depth experiment as data: which arms, at which sizes, and when reuse is said to pay.

Everything here was chosen on runs with other seeds (1000 and up), before the seeds of the
experiment were run. The rates began at half the pilot's; as each dense model then chose the highest
of them on the tuning seed, the grid was moved up, so that none is held back by where it ends.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Dense, KLoop, Versatile
from versatileffn.reproduce.depth.controller import PRESCRIBED
from versatileffn.reproduce.depth.limits import FactsTask, UnseenTask
from versatileffn.reproduce.depth.mixed import MixedTask
from versatileffn.reproduce.depth.task import TASK, DepthTask

F, F_EQUAL, F_LARGE = 64, 154, 256
REUSED = 0
"""The layer whose FFN is reused, from 0: its attention has brought k to the state by then."""
OPENING = 0.4
"""Share of the steps over which loops, and ks, open."""
RULE = (
    "Each arm has its own learning rate, the one of four with the best exact match on validation "
    "states in one run with the tuning seed; ties go to the one that is named first."
)


@dataclass(frozen=True)
class DepthArm:
    """One way of training one model.

    Args:
        name: folder and key in the results.
        title: what a person reads.
        ffn: the FFN of the reused layer.
        d_hidden: F, in all layers.
        opens_loops: share of the steps over which loops open, one after the other; None: all are
            open from the start.
        opens_k: share of the steps over which k opens from 0; None likewise.
    """

    name: str
    title: str
    ffn: FFNConfig
    d_hidden: int = F
    opens_loops: float | None = None
    opens_k: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        return {**dataclasses.asdict(self), "ffn": self.ffn.to_dict()}


def _versatile(**knobs: Any) -> Versatile:
    return Versatile(max_loops=TASK.most, reuse_layers=(REUSED,), **knobs)


def _loops(count: int) -> KLoop:
    return KLoop(num_loops=count, reuse_layers=(REUSED,))


FROM_ONE = _versatile(reuse_gains="learned", gain_init=1.0)
BOTH: dict[str, Any] = {"opens_loops": OPENING, "opens_k": OPENING}
DENSE, DENSE_LARGE, DENSE_LARGE_K = "dense", "dense-4f", "dense-4f-k"
PAPER, PAPER_BOTH, TOLD = "paper", "paper-both", "prescribed"
ARMS = (
    DepthArm(DENSE, f"Dense, F = {F}", Dense()),
    DepthArm("dense-equal", f"Dense, F = {F_EQUAL}", Dense(), F_EQUAL),
    DepthArm(DENSE_LARGE, f"Dense, F = {F_LARGE}", Dense(), F_LARGE),
    DepthArm(DENSE_LARGE_K, f"Dense, F = {F_LARGE}, k opens", Dense(), F_LARGE, opens_k=OPENING),
    DepthArm("2-loop", "2-Loop", _loops(2)),
    DepthArm("4-loop", "4-Loop", _loops(4)),
    DepthArm(PAPER, "VersatileFFN (paper)", _versatile()),
    DepthArm(TOLD, "depth prescribed", _versatile(fusion="depth", controller=PRESCRIBED)),
    DepthArm(PAPER_BOTH, "VersatileFFN (paper), loops and k open", _versatile(), **BOTH),
    DepthArm("learned-both", "learned gains from 1, loops and k open", FROM_ONE, **BOTH),
    DepthArm("paper-k", "VersatileFFN (paper), k opens", _versatile(), opens_k=OPENING),
    DepthArm("paper-loops", "VersatileFFN (paper), loops open", _versatile(), opens_loops=OPENING),
)
FURTHER_ARMS = (
    DepthArm("dense-k", f"Dense, F = {F}, k opens", Dense(), opens_k=OPENING),
    DepthArm("dense-equal-k", f"Dense, F = {F_EQUAL}, k opens", Dense(), F_EQUAL, opens_k=OPENING),
    DepthArm("4-loop-k", "4-Loop, k opens", _loops(4), opens_k=OPENING),
    DepthArm(
        "prescribed-lambda",
        "depth prescribed, the paper's λ",
        _versatile(controller=PRESCRIBED),
    ),
    DepthArm("depth-both", "depth alone, loops and k open", _versatile(fusion="depth"), **BOTH),
    DepthArm("learned-one", "learned gains from 1", FROM_ONE),
    DepthArm(
        "learned-zero-both",
        "learned gains from 0, loops and k open",
        _versatile(reuse_gains="learned"),
        **BOTH,
    ),
)
CRITERION = (
    "Reuse pays here if, over the seeds, "
    "`{judged}` has a higher exact match (mean over k) than every dense model of four times "
    "its F ({larger}): paired differences positive with p < 0.05 after Holm's correction for all "
    "comparisons of the table. Its loops follow the need if the rank correlation of loops with k, "
    "a mean over seeds, is above 0.5 and its 95 % interval above 0. "
    f"The mechanism works if `{TOLD}` reaches an exact match of 0.99 or more. The paper's "
    f"controller fails without the curricula if `{PAPER}` stays below `{TOLD}`, by the same test."
)


@dataclass(frozen=True)
class DepthProtocol:
    """The experiment at one size.

    Args:
        scale: its name.
        steps: optimizer steps of a run.
        batch: questions in one step.
        rates: peak learning rates to choose from, the pilot's first; one is taken as it is.
        tuning_seed: of the runs that choose among several.
        evaluations: of the validation states along a run.
        arms: what is trained.
        judged: the arm that the criterion is about.
        first_seed: of the repetitions.
        d_model, num_layers, num_heads, init: of the Llama; `init` is the standard deviation of new
            weights.
        task: the questions.
    """

    scale: str
    steps: int
    batch: int
    rates: tuple[float, ...]
    tuning_seed: int
    evaluations: int
    arms: tuple[DepthArm, ...] = ARMS
    judged: str = PAPER_BOTH
    first_seed: int = 0
    d_model: int = 32
    num_layers: int = 2
    num_heads: int = 4
    init: float = 0.1
    task: DepthTask = TASK

    @property
    def larger(self) -> str:
        """Names of the dense arms of four times its F."""
        dense = [arm for arm in self.arms if isinstance(arm.ffn, Dense)]
        return ", ".join(f"`{arm.name}`" for arm in dense if arm.d_hidden == F_LARGE)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        return {
            **dataclasses.asdict(self),
            "arms": [arm.to_dict() for arm in self.arms],
            "task": dataclasses.asdict(self.task),
            "reused_layer": REUSED,
            "rule": RULE if len(self.rates) > 1 else None,
            "criterion": CRITERION.format(judged=self.judged, larger=self.larger),
        }


TINY = DepthProtocol(
    scale="tiny",
    steps=800,
    batch=256,
    rates=(4e-3, 8e-3, 1.6e-2, 3.2e-2),
    tuning_seed=1999,
    evaluations=16,
)


def _only(*names: str) -> tuple[DepthArm, ...]:
    return tuple(arm for arm in ARMS if arm.name in names)


_LIMITS = dataclasses.replace(
    TINY,
    rates=(1.6e-2,),
    arms=_only(DENSE, DENSE_LARGE, "4-loop", PAPER, TOLD),
    judged=PAPER,
    first_seed=30,
)
SCALES = {
    "tiny": TINY,
    # Declared after six seeds of `tiny` were seen: there the paper's form, its learning rate tuned,
    # needed no curriculum. That is a hypothesis until other seeds say so.
    "confirm": dataclasses.replace(
        TINY,
        scale="confirm",
        arms=_only("dense-equal", DENSE_LARGE, DENSE_LARGE_K, "4-loop", PAPER, PAPER_BOTH, TOLD),
        judged=PAPER,
        first_seed=10,
    ),
    "demo": dataclasses.replace(
        TINY, scale="demo", rates=(1.6e-2,), arms=_only(DENSE, DENSE_LARGE, PAPER), judged=PAPER
    ),
    # Declared after pilot runs with seed 1000: in the company of text it takes longer to learn.
    "text": dataclasses.replace(
        TINY,
        scale="text",
        steps=3200,
        rates=(1.6e-2,),
        arms=_only(DENSE_LARGE, "4-loop", PAPER),
        judged=PAPER,
        first_seed=20,
        task=MixedTask(TASK.bits, TASK.most),
    ),
    # Where reuse isn't expected to pay, see `limits.py`; as many facts as the small dense model
    # nearly holds (seed 1000).
    "facts": dataclasses.replace(_LIMITS, scale="facts", task=FactsTask(TASK.bits, TASK.most)),
    "unseen": dataclasses.replace(_LIMITS, scale="unseen", task=UnseenTask(TASK.bits, TASK.most)),
    "smoke": dataclasses.replace(
        TINY, scale="smoke", steps=8, batch=16, rates=(4e-3, 2e-3), evaluations=2
    ),
}
HIDDEN_SCALES = ("smoke",)  # seconds of work, for tests of the path; says nothing about models


def depth_protocol(scale: str, arms: Sequence[str] | None = None) -> DepthProtocol:
    """The experiment of a scale.

    Args:
        scale: its name.
        arms: names of those to train; `all` takes the further ones, too. None takes the scale's.

    Raises:
        ConfigError: there is none of that name.
    """
    if scale not in SCALES:
        known = [name for name in SCALES if name not in HIDDEN_SCALES]
        raise ConfigError(f"scale={scale!r} is unknown for this task: choose one of {known}")
    if arms is None:
        return SCALES[scale]
    there = {arm.name: arm for arm in (*ARMS, *FURTHER_ARMS)}
    for name in arms:
        if name != "all" and name not in there:
            raise ConfigError(
                f"arm {name!r} is unknown for this task: choose from {[*there, 'all']}"
            )
    chosen = tuple(arm for arm in there.values() if "all" in arms or arm.name in arms)
    return dataclasses.replace(SCALES[scale], arms=chosen)
