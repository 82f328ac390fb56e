"""Shared noise: random numbers that device and server compute alike, from a hash instead of a generator's state.

    key(s, c, t, r) = a(a(a(a(0, s), c), t), r)        a(h, x) = mix(h + (x + 1) G)      modulo 2^64
    bits(id)        = a(key, id)                       the id-th output of SplitMix64 seeded with the key
    u(id)           = (bits >> 12 + 1/2) 2^-52         g(id) = -log(-log u(id))

s: seed, c: choice index, t: absolute position, r: purpose. `mix` is the finaliser of SplitMix64 (Steele et al., "Fast
splittable pseudorandom number generators", 2014). 52 bits rather than 53, since (2^53 - 1/2) 2^-53 rounds to 1, where
Gumbel noise is infinite; with 52 every u is exact and lies in [2^-53, 1 - 2^-53].
docs/sampling.md is the specification, with test vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import log
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Int64Array = npt.NDArray[np.int64]
Words = TypeVar("Words", Int64Array, Tensor)

GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
"""Shifts and factors, the latter as the signed integers with the same bits."""

NOISE_RANGE = log(53 * log(2)) - log(-np.log1p(-(2.0**-53)))
"""Largest minus smallest Gumbel value, about 40.34: no noise turns over a greater lead in log-probability."""


class Purpose(IntEnum):
    """What a random number is for; numbers of different purposes are independent."""

    TARGET = 1
    """The target's own draw from p: every token under coupling, the bonus token under rejection sampling."""
    ACCEPT = 2
    RESIDUAL = 3
    DRAFT = 4
    """The drafter's draw from q under rejection sampling, which must know nothing of the other three."""


def wrapped(word: int) -> int:
    """The signed 64-bit integer with the same bits as `word` modulo 2^64."""
    return ((word + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def mix(z: Words) -> Words:
    """SplitMix64's finaliser on 64-bit words kept as int64, of numpy (one dimension or more) or torch; in place."""
    for shift, factor in _ROUNDS:
        z ^= _shifted(z, shift)
        z *= factor
    z ^= _shifted(z, 31)
    return z


def request_keys(seeds: Sequence[int], choices: Sequence[int]) -> Int64Array:
    """a(a(0, seed), choice) of each request, [n]; `absorb` positions, then a purpose. Numbers are taken modulo 2^64."""
    words = np.array([[wrapped(number) for number in numbers] for numbers in (seeds, choices)], dtype=np.int64)
    return absorb(absorb(np.zeros_like(words[0]), words[0]), words[1])


def absorb(state: Words, word: Words | int) -> Words:
    """a(h, x) of the specification, elementwise; `word` is int64 like `state` or one int."""
    step = wrapped((word + 1) * GAMMA) if isinstance(word, int) else (word + 1) * wrapped(GAMMA)
    return mix(state + step)


def uniform(keys: Int64Array, purpose: Purpose) -> npt.NDArray[np.float64]:
    """One number in (0, 1) per row, [rows]: the noise of token id 0."""
    bits = absorb(absorb(keys, int(purpose)), 0)
    return np.asarray(((bits >> 12 & (1 << 52) - 1) + 0.5) * 2.0**-52, dtype=np.float64)


def gumbel(keys: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64 [rows, n], of `keys` int64 [rows] (purpose absorbed) and `ids` int64 [rows or 1, n]."""
    bits = absorb(keys[:, None], ids)
    mantissa = bits.bitwise_right_shift_(12).bitwise_and_((1 << 52) - 1)
    return mantissa.double().add_(0.5).mul_(2.0**-52).log_().neg_().log_().neg_()


def _shifted(z: Words, by: int) -> Words:
    """`z` shifted right as unsigned words: int64 shifts drag the sign along."""
    shifted = z >> by
    shifted &= (1 << 64 - by) - 1
    return shifted
