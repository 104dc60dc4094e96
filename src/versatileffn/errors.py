"""The errors a user can cause. Each message names what was wrong, where, and what to do."""


class VersatileFFNError(Exception):
    """Base of every error that is the input's fault and not a defect of this package."""


class ConfigError(VersatileFFNError):
    """A configuration value is unknown, out of range, or contradicts another one."""


class DataError(VersatileFFNError):
    """A corpus, tokenizer or token folder can't be read or doesn't fit what was asked of it."""


class CheckpointError(VersatileFFNError):
    """A checkpoint can't be read, lacks weights, or is of a family that isn't supported."""


class ResourceError(VersatileFFNError):
    """The machine stopped the work, not the input: disk or memory is too small, a process died.

    What was done so far is kept, and the same command goes on with it.
    """
