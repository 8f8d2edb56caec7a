"""The random numbers that tokens are drawn with: each a pure function of a seed and a counter. Knows no torch.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) at step `counter` of a stream
that begins at a multiple of the seed. Seed and counter are taken modulo 2**64.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_MASK_64 = (1 << 64) - 1
_STREAM = 0xD1342543DE82EF95
_STEP = 0x9E3779B97F4A7C15
_FIRST_MIX = 0xBF58476D1CE4E5B9
_SECOND_MIX = 0x94D049BB133111EB


def uniform(seed: int, counter: int) -> float:
    """In [0, 1), a multiple of 2**-32."""
    state = (seed * _STREAM + (counter + 1) * _STEP) & _MASK_64
    state = ((state ^ (state >> 30)) * _FIRST_MIX) & _MASK_64
    state = ((state ^ (state >> 27)) * _SECOND_MIX) & _MASK_64
    return ((state ^ (state >> 31)) >> 32) / 2**32


def seed_array(seeds: Iterable[int]) -> NDArray[np.uint64]:
    """Seeds of any size as `uniforms` takes them; worth keeping while the rows stay the same."""
    return np.array([seed & _MASK_64 for seed in seeds], dtype=np.uint64)


def uniforms(seeds: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """`uniform` of every pair: (rows,) float64."""
    state = seeds * np.uint64(_STREAM) + (counters + np.uint64(1)) * np.uint64(_STEP)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST_MIX)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND_MIX)
    numbers: NDArray[np.float64] = ((state ^ (state >> np.uint64(31))) >> np.uint64(32)) / 2.0**32
    return numbers
