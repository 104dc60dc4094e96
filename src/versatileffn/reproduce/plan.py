"""A protocol as a list of stages: who needs whom, and what each one's hash covers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from versatileffn.data.default_corpus import default_corpus_name
from versatileffn.data.meta import TokenMeta
from versatileffn.ffn.config import Dense
from versatileffn.reproduce import steps
from versatileffn.reproduce.arms import THE_BASE, Arm
from versatileffn.reproduce.protocol import Protocol
from versatileffn.reproduce.stages import Stage, canonical_hash
from versatileffn.workspace.manifest import digests, sha256

TOKENS = "tokenize"
# Fields of the protocol that decide how a model is trained, not how it is measured.
TRAINING = ("architecture", "seq_len", "batch_tokens", "learning_rate", "evaluations",
            "bf16", "threads")  # fmt: skip
SCORING = ("tasks", "tasks_limit")
TOKENIZING = ("vocab_size", "documents", "val_documents")
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
    stages: list[Stage] = []
    shared: dict[str, Any] = {} if tokens is None else {"tokens": token_folder_hash(tokens)}
    if tokens is None:
        inputs = {**_fields(protocol, TOKENIZING), "corpus": corpus_identity(corpus)}
        work = partial(steps.tokenize, protocol, corpus)
        effort = 4e5 * _cost(protocol)
        stages.append(Stage(TOKENS, "tokenize the corpus", inputs, work, (), ("tokens",), effort))
        tokens = root / TOKENS / "tokens"
    needs = tuple(stage.name for stage in stages)
    for seed in range(seeds):
        context = steps.Context(protocol, tokens, seed)
        stages += _Seed(context, root, needs, {**shared, "seed": seed}).stages()
    return stages


@dataclass(frozen=True)
class _Seed:
    """The stages of one seed: base, then every arm.

    Args:
        context: what they share.
        root: output folder.
        needs: what all of them need.
        shared: inputs of all of them.
    """

    context: steps.Context
    root: Path
    needs: tuple[str, ...]
    shared: dict[str, Any]

    def stages(self) -> list[Stage]:
        """In an order in which they can run."""
        trained: dict[str, Stage] = {}
        found = []
        for arm in (THE_BASE, *self.context.protocol.arms):
            start = None if arm.start is None else trained[arm.start]
            if start is not None and not isinstance(arm.ffn, Dense):  # the control is the base
                start = self._convert(arm, start)
                found.append(start)
            trained[arm.name] = self._train(arm, start)
            found += [trained[arm.name], self._measure(arm, trained[arm.name])]
            if self.context.protocol.tasks is not None:
                found.append(self._score(arm, trained[arm.name]))
        return found

    def _convert(self, arm: Arm, base: Stage) -> Stage:
        work = partial(steps.convert, self.context, arm, self._model(base))
        inputs = {"ffn": arm.knobs}
        return self._stage(arm, "convert", base, inputs, work, ("model",))

    def _train(self, arm: Arm, start: Stage | None) -> Stage:
        chosen = self.context.protocol
        init_from = None if start is None else self._model(start)
        inputs = {**_fields(chosen, TRAINING), "tokens_budget": chosen.tokens(arm)}
        inputs |= {"optim": dict(arm.optim)} if arm.optim else {}
        if start is None:
            inputs |= {"architecture": chosen.architecture_of(arm), "ffn": arm.knobs}
        work = partial(steps.train_phase, self.context, arm, init_from)
        effort = 3 * chosen.tokens(arm) * _cost(chosen, arm)
        return self._stage(arm, "train", start, inputs, work, ("run/model",), effort)

    def _measure(self, arm: Arm, trained: Stage) -> Stage:
        work = partial(steps.measure, self.context, self._model(trained))
        inputs = _fields(self.context.protocol, MEASURING)
        inputs |= {"capped": True} if self.context.protocol.capped else {}
        effort = 4e5 * _cost(self.context.protocol)
        return self._stage(arm, "measure", trained, inputs, work, effort=effort)

    def _score(self, arm: Arm, trained: Stage) -> Stage:
        work = partial(steps.score, self.context, self._model(trained))
        return self._stage(arm, "score", trained, _fields(self.context.protocol, SCORING), work)

    def _stage(
        self,
        arm: Arm,
        verb: str,
        start: Stage | None,
        inputs: dict[str, Any],
        work: Callable[[Path], dict[str, Any]],
        produces: tuple[str, ...] = (),
        effort: float = 1.0,
    ) -> Stage:
        return Stage(
            f"seed-{self.context.seed}/{arm.name}/{verb}",
            f"seed {self.context.seed} · {arm.title} · {verb}",
            {**self.shared, **inputs},
            work,
            self.needs if start is None else (*self.needs, start.name),
            produces,
            effort,
        )

    def _model(self, stage: Stage) -> Path:
        """The model that a stage makes."""
        return self.root / stage.name / stage.produces[0]


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


def _fields(protocol: Protocol, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(protocol, name) for name in names}


def _cost(protocol: Protocol, arm: Arm = THE_BASE) -> float:
    """Rough FLOPs per token of a forward pass, for the time left only."""
    shape = protocol.architecture_of(arm)
    D, F, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    passes = arm.ffn.loops + 0.5 * arm.ffn.has_router
    return 2.0 * (layers * (4 * D * D + passes * 3 * D * F) + protocol.vocab_size * D)
