"""A random-looking order of any number of things, in no memory: a permutation that is computed.

A Feistel network over pairs of digits below √n (Black and Rogaway 2002, "Ciphers with arbitrary
finite domains"); what falls outside of the range walks on until it is inside. Nothing here may
change: a run is continued in the order that it began in, whichever release continues it, which is
why no library's shuffle is taken.
"""

from math import isqrt

import numpy as np

ROUNDS = 8


class Permutation:
    """A permutation of 0 … size-1 that a key chooses; never held, so any size takes no memory.

    Args:
        size: how many things there are.
        key: what chooses, non-negative integers.
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self._side = np.uint64(isqrt(max(size - 1, 0)) + 1)  # its square is at least size
        # NumPy promises that a SeedSequence's words never change.
        self._keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """What stands at each of these places.

        Args:
            places: integers in 0 … size-1, of shape (places,).

        Returns:
            int64 of the same shape.
        """
        found = self._once(places.astype(np.uint64))
        while (outside := found >= self.size).any():
            found[outside] = self._once(found[outside])
        return found.astype(np.int64)

    def _once(self, values: np.ndarray) -> np.ndarray:
        """Each value's partner in the permutation of 0 … side² - 1."""
        left, right = np.divmod(values, self._side)
        for key in self._keys:
            left, right = right, (left + _mixed(right + key) % self._side) % self._side
        return left * self._side + right


def _mixed(values: np.ndarray) -> np.ndarray:
    """Sixty-four bits that look random, for each: SplitMix64's last step (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
