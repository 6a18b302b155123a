"""Chance as a function of integers: permutations and generators that need no state to be saved.

Whoever knows the seed and a row's number knows where the row lies and what is drawn for it, on any rank, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

Words = npt.NDArray[np.uint64]

_ALL = (1 << 64) - 1
_ROUNDS = 8


def mix(*words: int) -> int:
    """One well-stirred 64-bit word of several integers; the order counts.

    Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators", figure 16 (SplitMix64).
    """
    state = 0
    for word in words:
        state = (state ^ (word & _ALL)) + 0x9E3779B97F4A7C15 & _ALL
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _ALL
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _ALL
        state ^= state >> 31
    return state


class _Key(ISeedSequence):
    """A seed that is the generator's key already. Asking the system for entropy would take longer than all drawing."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> Words:
        """The key; Philox wants two words of 64 bits."""
        return self.words


def generators(seed: int, numbers: Iterable[int], *, purpose: int = 0) -> list[np.random.Generator]:
    """A generator for each of `numbers`, a function of `(seed, purpose, number)` alone; about 3 µs each.

    Args:
        seed: of the run.
        numbers: of rows, or of whatever draws.
        purpose: sets apart what is drawn for one number on several occasions.

    Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 4 (every key is a stream).
    """
    first = mix(seed, purpose)
    keys = np.array([(first, number & _ALL) for number in numbers], np.uint64).reshape(-1, 2)
    return [np.random.Generator(np.random.Philox(_Key(key))) for key in keys]  # type: ignore[arg-type]


class Permutation:
    """A permutation of `range(size)` that is computed where it is asked, not stored.

    A Feistel network shuffles the smallest power of two that holds `size`; what falls outside goes round again until it
    falls inside, which happens less than once on average.

    Args:
        size: how many numbers.
        key: integers; each key is a permutation of its own.

    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", sections 3 (cycle walking) and 4 (Feistel).
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        bits = max(size - 1, 0).bit_length()
        self._low = np.uint64(bits - bits // 2)
        self._masks = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
        self._keys = [np.uint64(mix(*key, turn)) for turn in range(_ROUNDS)]

    def __call__(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Where each of `indices` goes; any shape, all in `range(size)`."""
        x = np.array(indices, np.uint64)
        if self.size > 1 and x.size:
            flat = self._network(x.reshape(-1))
            while len(outside := np.flatnonzero(flat >= self.size)):
                flat[outside] = self._network(flat[outside])
            x = flat.reshape(x.shape)
        return x.astype(np.int64)

    def _network(self, x: Words) -> Words:
        high, low = x >> self._low, x & self._masks[1]
        for turn, key in enumerate(self._keys):
            if turn % 2:
                low = low ^ (_stir(high, key) & self._masks[1])
            else:
                high = high ^ (_stir(low, key) & self._masks[0])
        return high << self._low | low


def _stir(x: Words, key: np.uint64) -> Words:
    """A hash of each word under a key, its low bits as good as its high ones."""
    x = (x ^ key) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(29)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(32)
