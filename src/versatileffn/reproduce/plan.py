"""A protocol as a list of stages: who needs whom, and what each one's hash covers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from versatileffn.data.default_corpus import default_corpus_name
from versatileffn.data.meta import TokenMeta
from versatileffn.ffn.config import Dense
from versatileffn.reproduce import steps
from versatileffn.reproduce.protocol import Arm, Protocol
from versatileffn.reproduce.results import BASE
from versatileffn.reproduce.stages import Stage, canonical_hash
from versatileffn.workspace.manifest import digests, sha256

TOKENS = "tokenize"
TRAINED = ("run/model",)
# Fields of the protocol that decide how a model is trained, not how it is measured.
TRAINING = ("architecture", "seq_len", "batch_tokens", "learning_rate", "evaluations",
            "bf16", "threads")  # fmt: skip
MEASURING = ("seq_len", "usage_windows")


def build_stages(
    protocol: Protocol,
    root: Path,
    seeds: int,
    tokens: Path | None = None,
    corpus: str | None = None,
) -> list[Stage]:
    """All stages of a reproduction, each after those it needs.

    Args:
        protocol: the experiment.
        root: output folder, below which every stage has its own.
        seeds: how often everything but the tokenizing is done, with seeds 0, 1, …
        tokens: a folder that `versatileffn tokenize` wrote, to be used instead of making one.
        corpus: text to tokenize; None takes the default corpus. Unused with `tokens`.

    Raises:
        DataError: `tokens` is no token folder.
    """
    needs: tuple[str, ...] = ()
    data: dict[str, str] = {}
    stages: list[Stage] = []
    if tokens is None:
        inputs = {"vocab_size": protocol.vocab_size, "corpus": corpus_identity(corpus)}
        work = partial(steps.tokenize, protocol, corpus)
        effort = _dense(protocol) * 4e5
        title = "tokenize the corpus"
        stages.append(
            Stage(
                TOKENS,
                title,
                inputs,
                work,
                produces=("tokens",),
                effort=effort,
            )
        )
        folder, needs = root / TOKENS / "tokens", (TOKENS,)
    else:
        folder = tokens
        data = {"tokens": token_folder_hash(tokens)}
    for seed in range(seeds):
        context = steps.Context(protocol, folder, seed)
        stages += _seed_stages(context, root, needs, {**data, "seed": seed})
    return stages


def _seed_stages(
    context: steps.Context, root: Path, needs: tuple[str, ...], shared: dict[str, Any]
) -> list[Stage]:
    """Base, then every arm."""
    protocol = context.protocol
    top = f"seed-{context.seed}"
    label = f"seed {context.seed} · "
    train_base, base_model = f"{top}/{BASE}/train", root / top / BASE / "train/run/model"
    training = {**shared, **_fields(protocol, TRAINING)}
    stages = [
        Stage(
            train_base,
            label + "Base · train",
            {**training, "tokens_budget": protocol.base_tokens},
            partial(_train, context, protocol.base_tokens, None),
            needs,
            produces=TRAINED,
            effort=3 * protocol.base_tokens * _dense(protocol),
        ),
        _measure(context, BASE, "Base", base_model, shared, (*needs, train_base)),
    ]
    for arm in protocol.arms:
        stages += _arm_stages(context, arm, root, needs, train_base, shared)
    return stages


def _arm_stages(
    context: steps.Context,
    arm: Arm,
    root: Path,
    needs: tuple[str, ...],
    train_base: str,
    shared: dict[str, Any],
) -> list[Stage]:
    """Convert (the control is the base itself), train, measure."""
    protocol = context.protocol
    top = f"seed-{context.seed}/{arm.name}"
    label = f"seed {context.seed} · {arm.title} · "
    start, start_model = train_base, root / train_base / "run/model"
    stages = []
    if not isinstance(arm.ffn, Dense):
        start = f"{top}/convert"
        work = partial(steps.convert, context, arm, start_model)
        start_model = root / start / "model"
        inputs = {**shared, "ffn": arm.ffn.to_dict()}
        stages += [
            Stage(
                start,
                label + "convert",
                inputs,
                work,
                (*needs, train_base),
                produces=("model",),
            ),
        ]
    budget = protocol.continued_tokens
    train = f"{top}/train"
    stages += [
        Stage(
            train,
            label + "train",
            {**shared, **_fields(protocol, TRAINING), "tokens_budget": budget},
            partial(_train, context, budget, start_model),
            (*needs, start),
            produces=TRAINED,
            effort=3 * budget * _relative_cost(protocol, arm),
        ),
        _measure(context, arm.name, arm.title, root / train / "run/model", shared, (*needs, train)),
    ]
    return stages


def _measure(
    context: steps.Context,
    arm: str,
    title: str,
    model: Path,
    shared: dict[str, Any],
    needs: tuple[str, ...],
) -> Stage:
    return Stage(
        f"seed-{context.seed}/{arm}/measure",
        f"seed {context.seed} · {title} · measure",
        {**shared, **_fields(context.protocol, MEASURING)},
        _ignoring_folder(steps.measure, context, model),
        needs,
        effort=2 * _measure_effort(context.protocol),
    )


def token_folder_hash(folder: Path) -> str:
    """What identifies the data in a token folder: the content of its files.

    Raises:
        DataError: it is no token folder.
    """
    TokenMeta.load(folder)
    return canonical_hash(digests(folder))


def corpus_identity(corpus: str | None) -> dict[str, Any]:
    """What identifies a corpus: the content of local files, wherever they lie, else its name."""
    if corpus is None:
        return {"default": default_corpus_name()}
    path = Path(corpus)
    if not path.exists():
        return {"name": corpus}
    files = {path.name: sha256(path)} if path.is_file() else digests(path)
    return {"sha256": canonical_hash(files)}


def _train(
    context: steps.Context, budget: int, init_from: Path | None, folder: Path
) -> dict[str, Any]:
    return steps.train_phase(context, folder, budget, init_from)


def _ignoring_folder(
    work: Callable[[steps.Context, Path], dict[str, Any]], context: steps.Context, model: Path
) -> Callable[[Path], dict[str, Any]]:
    """For stages whose whole result is their summary."""
    return lambda folder: work(context, model)


def _fields(protocol: Protocol, names: tuple[str, ...]) -> dict[str, Any]:
    data = protocol.to_dict()
    return {name: data[name] for name in names}


def _dense(protocol: Protocol) -> float:
    return _relative_cost(protocol, None)


def _relative_cost(protocol: Protocol, arm: Arm | None) -> float:
    """Rough FLOPs per token of a forward pass, for the time left only."""
    shape = protocol.architecture
    D, F, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    passes = 1.0 if arm is None else arm.ffn.loops + 0.5 * arm.ffn.has_router
    return 2.0 * (layers * (4 * D * D + passes * 3 * D * F) + protocol.vocab_size * D)


def _measure_effort(protocol: Protocol) -> float:
    return 2e5 * _dense(protocol)
