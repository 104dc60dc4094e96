"""What the training options do: one arm for each, beside the paper's form.

All of it was fixed before its seeds were run. The task is the depth experiment's with 240 steps
instead of 800, as the paper's form solves it in 300 (pilot runs with seeds of 1000 and up): where
nothing can get better, an option could only hurt. In the pilot 1.6e-2 and 3.2e-2 were the rates of
interest; each arm chooses between them.
"""

from typing import Any

from versatileffn.ffn.config import Versatile
from versatileffn.reproduce.depth.arm import REUSED, DepthArm
from versatileffn.reproduce.depth.task import TASK

PLAIN = "paper"
"""The arm that each option is compared with."""


def _paper(reuse_layers: tuple[int, ...] | None = (REUSED,), **knobs: Any) -> Versatile:
    return Versatile(max_loops=TASK.most, reuse_layers=reuse_layers, **knobs)


OPTION_ARMS = (
    DepthArm(PLAIN, "VersatileFFN (paper)", _paper()),
    DepthArm(
        "sampled",
        "depths by lot (`sampled_loops` 1), then controllers fitted",
        _paper(),
        optim={"sampled_loops": {"ratio": 1.0}},
        fit=0.25,
    ),
    DepthArm(
        "consistent",
        "shallow exits held to deep ones (`consistency` 1)",
        _paper(),
        optim={"consistency": {"coef": 1.0}},
    ),
    DepthArm(
        "ramp",
        "loops open, gains ramp (`loop_curriculum` 0.4, `ramp`)",
        _paper(),
        optim={"loop_curriculum": {"share": 0.4, "ramp": True}},
    ),
    DepthArm(
        "prior",
        "exits pulled to a uniform prior (`loop_prior_coef` 0.1)",
        _paper(loop_prior_coef=0.1),
    ),
    DepthArm("rank", "weights by loop (`loop_rank` 4)", _paper(loop_rank=4)),
    DepthArm(
        "learned-one",
        "learned gains from 1 (`gain_init` 1)",
        _paper(reuse_gains="learned", gain_init=1.0),
    ),
    DepthArm(
        "learned-zero",
        "learned gains from 0 (`gain_init` 0)",
        _paper(reuse_gains="learned"),
    ),
    DepthArm("scaled", "each loop adds a quarter (`loop_scale` 1/L)", _paper(loop_scale=0.25)),
    DepthArm(
        "biased",
        "experts evened out by a bias (`router_bias_rate` 0.001)",
        _paper(router_bias_rate=1e-3, router_aux_loss_coef=0.0),
    ),
    DepthArm("both-layers", "both layers reused (`reuse_layers` left out)", _paper(None)),
)
OPTION_CRITERION = (
    f"Over eight seeds, each option is compared with `{PLAIN}`, the paper's form without it, "
    "paired by seed, on two measures: the exact match (mean over k), and the exact match under a "
    "cap (mean over k and the "
    f"caps 1 … {TASK.most - 1} that are set at inference). An option helped if its exact match is "
    "higher with p < 0.05 after Holm's correction over all options, and hurt if it is lower by the "
    "same test. It degrades more gracefully if its exact match under a cap is higher with p < 0.05 "
    "after Holm's correction over all options on that measure, and more abruptly if it is lower."
)
