"""Experiments as data: what is trained, on how much, and beside which baselines."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from versatileffn.errors import ConfigError
from versatileffn.ffn.config import Dense, FFNConfig, KLoop, MoE, Versatile
from versatileffn.reproduce.results import CONTROL


@dataclass(frozen=True)
class Arm:
    """One way of using the base model's FFNs, continued from the base.

    Args:
        name: folder and key in the results.
        title: what a person reads.
        ffn: the FFN after conversion; dense is the control.
    """

    name: str
    title: str
    ffn: FFNConfig


ARMS = (
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
FURTHER_ARMS = (
    Arm(
        "mor",
        "Token choice (MoR)",
        Versatile(controller="token-choice", fusion="depth", reuse_gains="learned"),
    ),
)


@dataclass(frozen=True)
class Protocol:
    """The paper's protocol at one size: train a dense base, convert it, continue on the same data.

    The paper continues for one pass over everything that the base saw. `continued_share` says how
    much of a pass it is here: an arm reads the first `continued_tokens` that the base read, in the
    base's order.

    Source: the protocol of arXiv 2512.14531; the sizes are ours.

    Args:
        scale: its name.
        architecture: fields of a LlamaConfig; the vocabulary comes from the data.
        vocab_size: of the tokenizer trained on the corpus; unused with a given token folder.
        seq_len: tokens per window.
        batch_tokens: tokens per optimizer step.
        base_tokens: budget of the base model, tokens.
        continued_tokens: budget of every arm, tokens.
        learning_rate: peak, of both phases.
        evaluations: evaluations on the whole held-out split along each phase.
        usage_windows: held-out windows for executed FLOPs and loop statistics, spread evenly over
            the split.
        bf16: bfloat16 autocast in training.
        threads: CPU threads; None leaves torch's choice. At tiny sizes a second thread gains
            little, loses a lot where something else wants the core, and changes the last bits.
        choice: how learning rate and batch were chosen, as a sentence for the report.
        arms: what the base is continued as; one of them the dense control.
    """

    scale: str
    architecture: dict[str, Any]
    vocab_size: int
    seq_len: int
    batch_tokens: int
    base_tokens: int
    continued_tokens: int
    learning_rate: float
    evaluations: int
    usage_windows: int
    bf16: bool
    threads: int | None
    choice: str
    arms: tuple[Arm, ...] = ARMS

    def steps(self, tokens: int) -> int:
        """Optimizer steps that a token budget allows, at least one."""
        return max(1, tokens // self.batch_tokens)

    @property
    def continued_share(self) -> float:
        """Which share of the base's tokens an arm is continued on; 1 in the paper."""
        return self.continued_tokens / self.base_tokens

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        arms = [{"name": a.name, "title": a.title, "ffn": a.ffn.to_dict()} for a in self.arms]
        return {**dataclasses.asdict(self), "arms": arms}


def _llama(d_model: int, num_layers: int, num_heads: int, d_hidden: int) -> dict[str, Any]:
    """The paper's architecture at another size: SwiGLU, RMSNorm, RoPE, no biases, untied."""
    return {
        "hidden_size": d_model,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "intermediate_size": d_hidden,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
    }


TINY = Protocol(
    scale="tiny",
    architecture=_llama(d_model=96, num_layers=4, num_heads=3, d_hidden=384),
    vocab_size=2048,
    seq_len=256,
    batch_tokens=512,
    base_tokens=655_360,
    continued_tokens=204_800,
    learning_rate=4e-3,
    evaluations=3,
    usage_windows=64,
    bf16=False,
    threads=1,
    choice="Learning rate and batch were chosen on other text and other seeds: by the base's loss "
    "on training windows that it hasn't read (python -m versatileffn.reproduce.sweep, "
    "results/tiny-sweep.json).",
)
SCALES = {
    "tiny": TINY,  # what fits into a demo
    "tiny-epoch": dataclasses.replace(
        TINY, scale="tiny-epoch", continued_tokens=TINY.base_tokens, evaluations=5
    ),
    "smoke": Protocol(
        scale="smoke",
        architecture=_llama(d_model=32, num_layers=2, num_heads=2, d_hidden=128),
        vocab_size=300,
        seq_len=32,
        batch_tokens=256,
        base_tokens=6_144,
        continued_tokens=3_072,
        learning_rate=1e-2,
        evaluations=2,
        usage_windows=8,
        bf16=False,
        threads=1,
        choice="Learning rate and batch weren't chosen by anything.",
    ),
}
HIDDEN_SCALES = ("smoke",)  # seconds of work, for tests of the path; says nothing about models


def protocol(scale: str, arms: Sequence[str] | None = None) -> Protocol:
    """The protocol of a scale.

    Args:
        scale: its name.
        arms: names of what the base is continued as, beside the control; `all` takes the further
            ones, too. None takes the paper's.

    Raises:
        ConfigError: there is none of that name.
    """
    if scale not in SCALES:
        known = [name for name in SCALES if name not in HIDDEN_SCALES]
        raise ConfigError(f"scale={scale!r} is unknown: choose one of {known}")
    if arms is None:
        return SCALES[scale]
    there = {arm.name: arm for arm in (*ARMS, *FURTHER_ARMS)}
    for name in arms:
        if name != "all" and name not in there:
            raise ConfigError(f"arm {name!r} is unknown: choose from {[*there, 'all']}")
    chosen = (a for a in there.values() if "all" in arms or a.name in (CONTROL, *arms))
    return dataclasses.replace(SCALES[scale], arms=tuple(chosen))
