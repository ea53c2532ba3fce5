"""NPB's random numbers: x(k+1) = 5^13 x(k) mod 2^46, each scaled by 2^-46; vectorised, with jumps to any position.

Products of two 46-bit numbers wrap modulo 2^64 in uint64, which leaves their lowest 46 bits exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MULTIPLIER = 5**13
MODULUS = 1 << 46
_MASK = np.uint64(MODULUS - 1)


def _powers(count: int) -> NDArray[np.uint64]:
    """Return MULTIPLIER^1 .. MULTIPLIER^count modulo 2^46, by doubling."""
    powers = np.empty(count, dtype=np.uint64)
    powers[0] = MULTIPLIER
    filled = 1
    while filled < count:
        more = min(filled, count - filled)
        np.multiply(powers[:more], powers[filled - 1], out=powers[filled : filled + more])
        powers[filled : filled + more] &= _MASK
        filled += more
    return powers


class Stream:
    """The sequence that starts after `seed`, read in pieces of at most `piece` numbers from any position."""

    def __init__(self, seed: int, piece: int) -> None:
        self._seed = seed
        self._powers = _powers(piece)

    def uniform(self, position: int, count: int) -> NDArray[np.float64]:
        """Return numbers `position` .. `position` + `count` - 1 of the sequence (0 is the first after the seed), in (0, 1)."""
        start = self._seed * pow(MULTIPLIER, position, MODULUS) % MODULUS
        states = self._powers[:count] * np.uint64(start)
        states &= _MASK
        return states.astype(np.float64) * 2.0**-46
