"""The errors a user can cause. Each message names what was wrong, where, and what to do."""


class VersatileFFNError(Exception):
    """Base of every error that is the input's fault and not a defect of this package."""


class ConfigError(VersatileFFNError):
    """A configuration value is unknown, out of range, or contradicts another one."""


class DataError(VersatileFFNError):
    """A corpus, tokenizer or token folder can't be read or doesn't fit what was asked of it."""


class CheckpointError(VersatileFFNError):
    """A checkpoint can't be read, lacks weights, or is of a family that isn't supported."""


class PlanError(VersatileFFNError, ValueError):
    """A reuse plan contradicts itself, or was made for other tokens or another layer."""


class ResourceError(VersatileFFNError):
    """The machine stopped the work, not the input: disk or memory is too small, a process died.

    What was done so far is kept, and the same command goes on with it.
    """


class DivergedError(VersatileFFNError):
    """Training ran into numbers that aren't finite; what it saved before is kept.

    Args:
        step: optimizer steps that were finished.
        reason: what wasn't finite.
        remedy: what to do.
    """

    def __init__(
        self,
        step: int,
        reason: str,
        remedy: str = "lower optim.learning_rate and choose a new run.output_dir",
    ) -> None:
        super().__init__(f"training diverged at step {step}: {reason}; {remedy}")
        self.step, self.reason = step, reason
