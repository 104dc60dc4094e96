"""The depth experiment as a list of stages."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from versatileffn.reproduce.depth import steps
from versatileffn.reproduce.depth.arm import DepthArm
from versatileffn.reproduce.depth.protocol import DepthProtocol
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

    def stages(self) -> list[Stage]:
        """Each after those it needs: the choice of rates, where there is one, then every seed."""
        tuned = self.protocol.arms if len(self.protocol.rates) > 1 else ()
        chains = [*map(self._tune, tuned), *map(self._repeat, self.seeds)]
        return list(chain.from_iterable(chains))

    def _tune(self, arm: DepthArm) -> list[Stage]:
        """A run for each rate, and the choice."""
        top, seed = f"tune/{arm.name}", self.protocol.tuning_seed
        given = self._inputs(seed, [arm], top)
        runs = {}
        for rate in self.protocol.rates:
            run = self._train(arm, seed, f"{top}/rate-{rate:g}", given, rate, top)
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
        return [*given, *runs.values(), chosen]

    def _repeat(self, seed: int) -> list[Stage]:
        """Every arm once."""
        top = f"seed-{seed}"
        given = self._inputs(seed, self.protocol.arms, top)
        made: list[Stage] = []
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
            made += [trained, measured]
        return [*given, *made]

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
