"""One way of training one model of the depth experiment."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from versatileffn.ffn.config import FFNConfig

F = 64
REUSED = 0
"""The layer whose FFN is reused, from 0: its attention has brought k to the state by then."""


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
        optim: further keys of the `optim` section of its training.
        fit: further steps in which the controllers alone are trained, as a share of the steps;
            None: they are trained with the rest.
    """

    name: str
    title: str
    ffn: FFNConfig
    d_hidden: int = F
    opens_loops: float | None = None
    opens_k: float | None = None
    optim: Mapping[str, Any] = field(default_factory=dict)
    fit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        return {**dataclasses.asdict(self), "ffn": self.ffn.to_dict()}
