"""How a run optimizes: AdamW, its schedules, and what is done to loops and steps on the way."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from versatileffn.training.config_file import Count, Positive, Section, Share

TAU_PRESETS: dict[str, dict[str, float]] = {
    "paper": {"start": 5.0, "end": 0.1, "anneal_fraction": 0.96},
    "as-released": {"start": 5.0, "end": 5.0, "anneal_fraction": 0.96},
}


class TauSection(Section):
    """How the temperature of the loop choice falls (versatile FFNs only)."""

    start: Positive = 5.0
    """τ at the first step (dimensionless)."""
    end: Positive = 0.1
    """τ once annealed (dimensionless)."""
    anneal_fraction: Annotated[float, Field(gt=0, le=1)] = 0.96
    """Share of the schedule over which τ is annealed (0 to 1)."""


class LoopCurriculumSection(Section):
    """Loops open one after the other, in parts of equal length (versatile FFNs only)."""

    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the schedule that the parts fill (0 to 1); in the first, all tokens take one loop,
    in the last they choose among max_loops, as ever after."""
    ramp: bool = False
    """Each loop's gain rises from 0 to its own while its part lasts."""


class SampledLoopsSection(Section):
    """Each token's loops are drawn by lot in training, whatever the controller says, so that each
    depth is trained (versatile FFNs only)."""

    ratio: Positive = 1.0
    """Of each count's share to that of the count before; 1 draws all alike."""


class ConsistencySection(Section):
    """Exits under a budget are pulled towards the free ones, so that fewer loops cost less."""

    coef: Positive = 1.0
    """Weight in the training loss of KL(free ‖ capped), in nats per token: each step runs the
    batch a second time, every sequence under a most count of loops drawn from 1 … L − 1. The free
    pass has no gradient from it."""


def _tau_preset(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in TAU_PRESETS:
        raise ValueError(
            f"unknown preset {value!r}: choose one of {list(TAU_PRESETS)} or a mapping"
        )
    return TAU_PRESETS[value]


class BadStepsSection(Section):
    """Each step's loss and gradient are looked at before the optimizer moves; numbers that aren't
    finite, and spikes, are kept from the weights."""

    action: Literal["skip", "stop"] = "skip"
    """`skip` leaves the step out: no update, no moments, no router biases; its number, data,
    learning rate and τ pass as if it had been made. `stop` ends the run there. Either names the
    batch."""
    spike: Positive | None = None
    """A loss is a spike above median + spike × median absolute deviation of the last losses; left
    out: none is."""
    window: int = Field(100, ge=8)
    """How many last losses (of steps that were taken); before there are so many, none is a
    spike."""
    most: Count = 10
    """Steps in a row that may be left out; the next one ends the run as diverged."""


class OptimSection(Section):
    """AdamW and its schedule; the defaults are the paper's."""

    learning_rate: Positive
    """Peak learning rate (per step, dimensionless)."""
    adam_beta1: Share = 0.9
    """Decay of the gradient's mean per step."""
    adam_beta2: Share = 0.95
    """Decay of its square's mean per step."""
    adam_epsilon: Positive = 1e-8
    """Added to the denominator (gradient unit)."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay, per unit of learning rate; embeddings included, norms, biases and reuse
    gains exempt."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global L2 norm."""
    warmup_ratio: Share = 0.05
    """Share of the schedule in which the rate rises (0 to 1)."""
    min_lr_rate: float = Field(0.1, ge=0, le=1)
    """Final learning rate as a share of the peak (0 to 1)."""
    tau: Annotated[TauSection, BeforeValidator(_tau_preset)] = TauSection()
    """Temperature schedule: a mapping, or the preset `paper` or `as-released`."""
    frozen: list[str] = Field([])
    """Weights that stay as they are: regular expressions, each found in the name of at least one
    parameter."""
    loop_curriculum: LoopCurriculumSection | None = None
    """Left out: all loops are open from the first step."""
    sampled_loops: SampledLoopsSection | None = None
    """Left out: controllers choose. Their loop predictors stay as they are meanwhile, and held-out
    losses are of all open loops for each token; fit them in a run that starts from this one's
    model, with all else frozen: `frozen: ['^(?!.*controller)']`."""
    consistency: ConsistencySection | None = None
    """Left out: nothing holds shallow exits to the deep ones."""
    bad_steps: BadStepsSection | None = None
    """Left out: logged steps are looked at, and numbers that aren't finite end the run."""
