"""The paper's own sizes: the commands that train a table's arms, and what they cost."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from versatileffn.analysis.presets import preset
from versatileffn.analysis.training_flops import training_flops
from versatileffn.ffn.config import Dense
from versatileffn.models.family import reuse_config
from versatileffn.planning.gpus import GPUS, UTILISATION
from versatileffn.reproduce.arms import THE_BASE, Arm
from versatileffn.reproduce.protocol import Protocol
from versatileffn.reproduce.tables import TABLES

PEAK_FLOPS = GPUS["h100"].tflops * 1e12
"""Dense bfloat16 FLOPs per second of one H100 SXM."""
LOOP_SHARE = 3.1 / 4
"""Mean loops of L that tokens take. Source: what Table 2 implies at 354M, 3.05 to 3.22 of 4."""
TORCHRUN = "torchrun --nproc-per-node 8 -m versatileffn"


@dataclass(frozen=True)
class Cost:
    """What training an arm takes.

    Args:
        tokens: that it reads.
        flops: of forward and backward, recomputation left out.
    """

    tokens: int
    flops: float

    @property
    def gpu_hours(self) -> float:
        """At `UTILISATION` of `PEAK_FLOPS`."""
        return self.flops / (PEAK_FLOPS * UTILISATION) / 3600


def overrides(protocol: Protocol, arm: Arm) -> list[str]:
    """What `train configs/paper/SCALE.yaml` is to be told with `--set`; nothing for the base."""
    told = []
    if arm.start is not None:
        start = run_folder(protocol, arm.start)
        told += ["model.architecture=null", f"model.init_from={start}/model"]
    elif arm.width > 1:
        hidden = protocol.architecture_of(arm)["intermediate_size"]
        told.append(f"model.architecture.intermediate_size={hidden}")
    if not isinstance(arm.ffn, Dense):
        told.append(f"model.ffn={json.dumps(arm.knobs)}")
    if arm.budget > 1:
        told.append(f"run.max_steps={protocol.steps(protocol.tokens(arm))}")
    told += [f"optim.{key}={json.dumps(value)}" for key, value in arm.optim.items()]
    if "consistency" in arm.optim:  # which can't recompute layers
        told.append("run.gradient_checkpointing=false")
    if arm is not THE_BASE:
        told.append(f"run.output_dir={run_folder(protocol, arm.name)}")
    return told


def run_folder(protocol: Protocol, name: str) -> str:
    """Where an arm is trained; the base where its file says."""
    suffix = "" if name == THE_BASE.name else f"-{name}"
    return f"runs/paper/{protocol.scale}{suffix}"


def cost(protocol: Protocol, arm: Arm) -> Cost:
    """Tokens and FLOPs of an arm's training."""
    shape = preset(protocol.scale)
    shape.intermediate_size *= arm.width
    reused = reuse_config(shape, arm.ffn)
    per_token = training_flops(reused, protocol.seq_len, reused.ffn().loops * LOOP_SHARE)
    tokens = protocol.tokens(arm)
    return Cost(tokens, tokens * per_token)


def launch(protocol: Protocol) -> Iterator[str]:
    """The lines that say how a table is trained at one of the paper's sizes, and for how much."""
    yield f"{TABLES[protocol.table].title}, at {protocol.scale}. These sizes run on many GPUs:"
    yield f"the data, once (100B tokens): see the head of configs/paper/{protocol.scale}.yaml"
    total = 0.0
    for arm in (THE_BASE, *protocol.arms):
        found = cost(protocol, arm)
        total += found.gpu_hours
        told = "".join(f" --set {shlex.quote(text)}" for text in overrides(protocol, arm))
        yield ""
        yield (
            f"{arm.title}: {found.tokens / 1e9:.0f}B tokens, {found.flops:.2e} FLOPs, about "
            f"{found.gpu_hours:,.0f} GPU-hours"
        )
        yield f"  {TORCHRUN} train configs/paper/{protocol.scale}.yaml{told}"
        yield f"  versatileffn evaluate {run_folder(protocol, arm.name)}/model"
    yield ""
    yield (
        f"together about {total:,.0f} GPU-hours of H100 at {UTILISATION:.0%} of "
        f"{PEAK_FLOPS / 1e12:.0f} TFLOP/s, tasks and held-out evaluations not counted; tokens that "
        f"choose their loops are taken to choose {LOOP_SHARE:.0%} of them, as in the paper"
    )
