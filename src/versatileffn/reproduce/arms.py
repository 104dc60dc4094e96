"""What is compared: the arms of every experiment, as data."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.ffn.base_config import FFNConfig
from versatileffn.ffn.config import Dense, KLoop, MoE, Versatile
from versatileffn.reproduce.results import BASE, CONTROL


@dataclass(frozen=True)
class Arm:
    """One way of using a model's FFNs, continued from another model or trained from scratch.

    Args:
        name: folder and key in the results.
        title: what a person reads.
        ffn: the FFN after conversion; dense is the control.
        start: name of the dense model that it continues; None trains it from scratch.
        width: d_hidden, as a multiple of the base's. A wider model continues one of its width.
        budget: tokens, as a multiple of what the protocol gives its phase.
        optim: further keys of the `optim` section of its training.
    """

    name: str
    title: str
    ffn: FFNConfig
    start: str | None = BASE
    width: int = 1
    budget: int = 1
    optim: Mapping[str, Any] = field(default_factory=dict)

    @property
    def control(self) -> str:
        """What it is compared with: the dense model that read the same tokens as often."""
        return BASE if self.start is None else CONTROL

    @property
    def knobs(self) -> dict[str, Any]:
        """What decides its FFN: the variant, and what doesn't stand at its default."""
        default = type(self.ffn)().to_dict()
        return {
            name: value
            for name, value in self.ffn.to_dict().items()
            if name == "variant" or value != default[name]
        }

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        return {**vars(self), "ffn": self.ffn.to_dict(), "optim": dict(self.optim)}


def from_scratch(arm: Arm) -> Arm:
    """The same arm without a model to continue."""
    title = f"{arm.title}, from scratch"
    return dataclasses.replace(arm, name=f"scratch-{arm.name}", title=title, start=None)


THE_BASE = Arm(BASE, "Base (not continued)", Dense(), start=None)
PAPER = (
    Arm(CONTROL, "Dense, continued (1-loop)", Dense()),
    Arm("2-loop", "2-Loop", KLoop(num_loops=2)),
    Arm("4-loop", "4-Loop", KLoop(num_loops=4)),
    Arm("moe", "MoE", MoE()),
    Arm("versatile", "VersatileFFN (paper)", Versatile()),
    Arm("versatile-learned", "VersatileFFN (learned gains)", Versatile(reuse_gains="learned")),
)
# Mixture-of-Recursions trains from scratch. Continued from a dense base, its own form would start
# with a shock that says nothing about its router, so it gets the exact start; its counterpart is
# `versatile-learned`. The paper doesn't have it, so only who asks for it pays for it.
FURTHER = (
    Arm(
        "mor",
        "Token choice (MoR)",
        Versatile(controller="token-choice", fusion="depth", reuse_gains="learned"),
    ),
)


def choose(there: Sequence[Arm], further: Sequence[Arm], names: Sequence[str]) -> tuple[Arm, ...]:
    """Some of the arms that there are, in their order, and those that they need.

    Args:
        there: the usual arms.
        further: arms that are there for who asks for them.
        names: what was asked for; `all` takes everything.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {arm.name: arm for arm in (*there, *further)}
    for name in names:
        if name != "all" and name not in known:
            raise ConfigError(f"arm {name!r} is unknown: choose from {[*known, 'all']}")
    wanted = {*known} if "all" in names else {*names}
    wanted |= {arm.start for arm in known.values() if arm.name in wanted and arm.start}
    if any(known[name].control == CONTROL for name in wanted if name in known):
        wanted.add(CONTROL)
    return tuple(arm for arm in known.values() if arm.name in wanted)
