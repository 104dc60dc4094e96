"""Weights at addresses on which matrix products round alike."""

from torch import nn

ALIGNMENT = 16
"""Bytes; what the widest vector loads of common CPU kernels expect at least."""


def align(model: nn.Module) -> None:
    """Put weights at aligned addresses, file by file where they lie in memory-mapped ones.

    In such a file tensors start anywhere behind one that is a few bytes long, and matrix products
    on unaligned addresses round differently.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
