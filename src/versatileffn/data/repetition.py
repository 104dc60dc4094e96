"""Windows that repeat themselves, as OLMo's data loader finds them: the paper's release has it.

Source: `instance_filter` of OLMo's configuration and `find_periodic_sequences` of its data loader.
"""

import numpy as np

MAX_PERIOD = 13
MIN_TIMES = 32


def repeats(ids_NT: np.ndarray) -> np.ndarray:
    """Which windows hold a sequence of 1 … 13 tokens at least 32 times in a row.

    Args:
        ids_NT: token ids, integers of shape (windows, tokens of one).

    Returns:
        bool of shape (windows,).
    """
    num_windows, length = ids_NT.shape
    found = np.zeros(num_windows, bool)
    for period in range(1, MAX_PERIOD + 1):
        run = (MIN_TIMES - 1) * period  # so many tokens in a row equal the one a period before
        if run + period > length:
            break
        sums = np.zeros((num_windows, length - period + 1), np.int32)
        np.cumsum(ids_NT[:, period:] == ids_NT[:, :-period], axis=1, out=sums[:, 1:])
        found |= (sums[:, run:] - sums[:, :-run] == run).any(axis=1)
    return found
