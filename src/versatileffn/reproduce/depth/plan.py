"""The depth experiment as chains of stages: what one process does, one after the other."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from versatileffn.reproduce.depth import steps
from versatileffn.reproduce.depth.protocol import DepthArm, DepthProtocol
from versatileffn.reproduce.stages import Stage

TRAINING = ("steps", "batch", "evaluations", "d_model", "num_layers", "num_heads", "init")
"""Fields of the protocol that decide how a model is trained."""


@dataclass(frozen=True)
class DepthPlan:
    """Stages of the experiment; names of folders are `seed-S/ARM/VERB` below `root`.

    Args:
        protocol: the experiment.
        root: output folder.
        seeds: of the repetitions.
    """

    protocol: DepthProtocol
    root: Path
    seeds: tuple[int, ...]

    def tuning(self) -> list[list[Stage]]:
        """One chain for each arm: a run for each rate, and the choice; none for a single rate."""
        rates = self.protocol.rates
        return [self._tune(arm) for arm in self.protocol.arms] if len(rates) > 1 else []

    def repetitions(self) -> list[list[Stage]]:
        """One chain for each seed; they need the choices."""
        return [self._repeat(seed) for seed in self.seeds]

    def _tune(self, arm: DepthArm) -> list[Stage]:
        top, seed = f"tune/{arm.name}", self.protocol.tuning_seed
        chain = self._inputs(seed, [arm], top)
        runs = {}
        for rate in self.protocol.rates:
            run = self._train(arm, seed, f"{top}/rate-{rate:g}", chain, rate, top)
            runs[rate] = run
        logs = {rate: self.root / run.name / "run" / "log.jsonl" for rate, run in runs.items()}
        chosen = Stage(
            f"{top}/choose",
            f"tuning · {arm.title} · choose",
            {"rates": list(self.protocol.rates)},
            partial(steps.choose, logs),
            tuple(run.name for run in runs.values()),
            (steps.RATE,),
            0.01,
        )
        return [*chain, *runs.values(), chosen]

    def _repeat(self, seed: int) -> list[Stage]:
        top = f"seed-{seed}"
        chain = self._inputs(seed, self.protocol.arms, top)
        given = list(chain)
        for arm in self.protocol.arms:
            rate: float | str = self.protocol.rates[0]
            if len(self.protocol.rates) > 1:
                rate = f"tune/{arm.name}/choose"
            trained = self._train(arm, seed, f"{top}/{arm.name}/train", given, rate, top)
            measured = Stage(
                f"{top}/{arm.name}/measure",
                f"seed {seed} · {arm.title} · measure",
                {"arm": arm.to_dict()},
                partial(steps.measure, self.protocol, arm, self._model(trained)),
                (trained.name,),
                effort=0.05,
            )
            chain += [trained, measured]
        return chain

    def _inputs(self, seed: int, arms: Any, top: str) -> list[Stage]:
        """Questions and untrained models, as far as these arms need them."""
        common = {"seed": seed, "task": dataclasses.asdict(self.protocol.task)}
        fields = self._fields()
        made = []
        for opens in dict.fromkeys(arm.opens_k for arm in arms):
            name = f"{top}/{_questions(opens)}"
            inputs = {**common, **fields, "opens_k": opens}
            work = partial(steps.ask, self.protocol, seed, opens)
            made.append(Stage(name, f"{top} · questions", inputs, work, (), ("tokens",), 0.02))
        for size in dict.fromkeys(arm.d_hidden for arm in arms):
            inputs = {**common, **fields, "d_hidden": size}
            work = partial(steps.start, self.protocol, seed, size)
            name = f"{top}/{_start(size)}"
            made.append(
                Stage(name, f"{top} · start, F = {size}", inputs, work, (), ("model",), 0.02)
            )
        return made

    def _train(
        self,
        arm: DepthArm,
        seed: int,
        name: str,
        given: list[Stage],
        rate: float | str,
        top: str,
    ) -> Stage:
        """Train one arm; `rate` is a number, or the stage that chooses it."""
        tokens, model = f"{top}/{_questions(arm.opens_k)}", f"{top}/{_start(arm.d_hidden)}"
        assert {tokens, model} <= {stage.name for stage in given}
        chosen = isinstance(rate, str)
        work = partial(
            steps.train_arm,
            self.protocol,
            arm,
            seed,
            self.root / rate / steps.RATE if isinstance(rate, str) else rate,
            self.root / tokens / "tokens",
            self.root / model / "model",
        )
        inputs = {**self._fields(), "seed": seed, "arm": arm.to_dict()}
        where = f"seed {seed}" if chosen or "tune" not in name else f"tuning at {rate:g}"
        return Stage(
            name,
            f"{where} · {arm.title} · train",
            inputs if chosen else {**inputs, "rate": rate},
            work,
            (tokens, model, *((rate,) if isinstance(rate, str) else ())),
            ("run/model", "run/log.jsonl"),
            1.0 + 0.3 * (arm.ffn.loops > 1),
        )

    def _model(self, trained: Stage) -> Path:
        return self.root / trained.name / trained.produces[0]

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self.protocol, name) for name in TRAINING}


def _questions(opens_k: float | None) -> str:
    return "questions" if opens_k is None else f"questions-k-opens-{opens_k:g}"


def _start(d_hidden: int) -> str:
    return f"start-{d_hidden}"
