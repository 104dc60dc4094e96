"""Experiments as data: what is trained, on how much, and beside which baselines."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from versatileffn.analysis.presets import preset
from versatileffn.errors import ConfigError
from versatileffn.reproduce import arms as declared
from versatileffn.reproduce.arms import Arm
from versatileffn.reproduce.tables import TABLES


@dataclass(frozen=True)
class Protocol:
    """The paper's protocol at one size: train a dense base, convert it, continue on the same data.

    The paper continues for one pass over everything that the base saw. `continued_share` says how
    much of a pass it is here: an arm reads the first `continued_tokens` that the base read, in the
    base's order.

    Source: the protocol of arXiv 2512.14531; the sizes are ours.

    Args:
        scale: name of its size.
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
        arms: what is compared with the base and the dense control.
        table: name of what these arms are.
        tasks: labels of tasks on which every model is scored, separated by commas; None: on none.
        tasks_limit: items of each, from the first; None takes all.
        documents: of the corpus, from the first; None takes all.
        val_documents: documents held out; None holds out the usual share.
        capped: models that decide their loops are measured under each budget, too.
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
    arms: tuple[Arm, ...] = declared.PAPER
    table: str = "demo"
    tasks: str | None = None
    tasks_limit: int | None = None
    documents: int | None = None
    val_documents: int | None = None
    capped: bool = False

    @property
    def name(self) -> str:
        """Of the folder that it is run in, unless another is given."""
        return self.scale if self.table == "demo" else f"{self.table}-{self.scale}"

    def tokens(self, arm: Arm) -> int:
        """Budget of an arm's training."""
        return arm.budget * (self.base_tokens if arm.start is None else self.continued_tokens)

    def architecture_of(self, arm: Arm) -> dict[str, Any]:
        """Fields of the LlamaConfig of an arm that is trained from scratch."""
        shape = self.architecture
        return {**shape, "intermediate_size": arm.width * shape["intermediate_size"]}

    def steps(self, tokens: int) -> int:
        """Optimizer steps that a token budget allows, at least one."""
        return max(1, tokens // self.batch_tokens)

    @property
    def continued_share(self) -> float:
        """Which share of the base's tokens an arm is continued on; 1 in the paper."""
        return self.continued_tokens / self.base_tokens

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able data."""
        return {**vars(self), "arms": [arm.to_dict() for arm in self.arms]}


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


def _paper(scale: str, batch_tokens: int, steps: int, learning_rate: float) -> Protocol:
    """One of the paper's own sizes, as `configs/paper/` trains it."""
    shape = preset(scale)
    return Protocol(
        scale=scale,
        architecture=_llama(
            shape.hidden_size,
            shape.num_hidden_layers,
            shape.num_attention_heads,
            shape.intermediate_size,
        ),
        vocab_size=shape.vocab_size,
        seq_len=shape.max_position_embeddings,
        batch_tokens=batch_tokens,
        base_tokens=batch_tokens * steps,
        continued_tokens=batch_tokens * steps,
        learning_rate=learning_rate,
        evaluations=20,
        usage_windows=64,
        bf16=True,
        threads=None,
        choice="Learning rate and batch are the paper's.",
    )


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
    "on training windows that it hasn't read (results/tiny-sweep.json).",
)
LIMITED = Protocol(
    scale="0.1m",
    architecture=_llama(d_model=64, num_layers=2, num_heads=2, d_hidden=256),
    vocab_size=512,
    seq_len=256,
    batch_tokens=1024,
    base_tokens=2_621_440,
    continued_tokens=2_621_440,
    learning_rate=4e-3,
    evaluations=4,
    usage_windows=64,
    bf16=False,
    threads=1,
    choice="Learning rate and batch were chosen on other text and another seed: by the dense "
    "model's held-out loss (results/language/learning-rate.json).",
    documents=14_000,
    val_documents=150,
)
SCALES = {
    "tiny": TINY,  # what fits into a demo
    "tiny-epoch": dataclasses.replace(
        TINY, scale="tiny-epoch", continued_tokens=TINY.base_tokens, evaluations=5
    ),
    "0.1m": LIMITED,  # 20 tokens for each parameter outside the embeddings
    "0.3m": dataclasses.replace(
        LIMITED,
        scale="0.3m",
        architecture=_llama(d_model=96, num_layers=2, num_heads=3, d_hidden=384),
        base_tokens=5_898_240,
        continued_tokens=5_898_240,
        bf16=True,
    ),
    "small": Protocol(  # for a GPU
        scale="small",
        architecture=_llama(d_model=384, num_layers=6, num_heads=6, d_hidden=1536),
        vocab_size=4096,
        seq_len=1024,
        batch_tokens=65_536,
        base_tokens=283_115_520,  # 20 for each parameter outside the embeddings
        continued_tokens=283_115_520,
        learning_rate=1e-3,
        evaluations=8,
        usage_windows=64,
        bf16=True,
        threads=None,
        choice="Learning rate and batch weren't chosen by anything.",
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
SCALES |= {
    "354m": _paper("354m", 1_572_864, 25_431, 5e-4),
    "720m": _paper("720m", 1_048_576, 66_757, 4e-4),
    "1.21b": _paper("1.21b", 524_288, 190_735, 3e-4),
}
LAUNCHED = ("354m", "720m", "1.21b")  # on many GPUs, by commands that are printed
HIDDEN_SCALES = ("smoke",)  # seconds of work, for tests of the path; says nothing about models


def protocol(scale: str, arms: Sequence[str] | None = None, table: str = "demo") -> Protocol:
    """The protocol of a table at a scale.

    Args:
        scale: name of the size.
        arms: names of what is compared, beside the control; `all` takes the further ones, too. None
            takes the table's own.
        table: which comparison.

    Raises:
        ConfigError: there is none of that name.
    """
    if scale not in SCALES:
        known = [name for name in SCALES if name not in HIDDEN_SCALES]
        raise ConfigError(f"scale={scale!r} is unknown: choose one of {known}")
    if table not in TABLES:
        raise ConfigError(f"table={table!r} is unknown: choose one of {list(TABLES)}")
    chosen = TABLES[table].arms
    picked = chosen if arms is None else declared.choose(chosen, declared.FURTHER, arms)
    capped = TABLES[table].capped
    return dataclasses.replace(SCALES[scale], arms=picked, table=table, capped=capped)
