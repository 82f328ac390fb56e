"""Noise: the specification of docs/sampling.md, bit for bit, and independence of what is drawn from it."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines.chi_square import FALSE_ALARM, p_value
from wisp.engines.noise import NOISE_RANGE, Purpose, absorb, gumbel, mix, request_keys, uniform, wrapped

torch.set_num_threads(1)

DOCUMENT = Path(__file__).parents[2] / "docs" / "sampling.md"
MASK = (1 << 64) - 1
WORDS = st.integers(0, MASK)


def reference_mix(z: int) -> int:
    """The finaliser of SplitMix64 in plain integers, as the document has it."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def reference_absorb(state: int, word: int) -> int:
    """One step of the hash in plain integers."""
    return reference_mix((state + (word + 1) * 0x9E3779B97F4A7C15) & MASK)


def reference_bits(seed: int, choice: int, position: int, purpose: int, token: int) -> int:
    """The 64 bits behind one random number."""
    state = 0
    for word in (seed, choice, position, purpose, token):
        state = reference_absorb(state, word)
    return state


def unmixed(word: int) -> int:
    """The argument at which the finaliser gives `word`."""
    word ^= word >> 31 ^ word >> 62
    word = word * pow(0x94D049BB133111EB, -1, 1 << 64) & MASK
    word ^= word >> 27 ^ word >> 54
    word = word * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & MASK
    return word ^ word >> 30 ^ word >> 60


def keys(seeds: list[int], choices: list[int], positions: list[int], purpose: Purpose) -> np.ndarray:
    """Noise keys of rows, purpose included."""
    return absorb(absorb(request_keys(seeds, choices), np.array(positions)), int(purpose))


def documented_vectors() -> list[tuple[int, int, int, int, int, int, float, float]]:
    """The rows of the table of test vectors in the document."""
    rows = re.findall(
        r"^\| (0x[0-9a-f]+) \| (\d+) \| (\d+) \| (\d) \| (\d+) \| (0x[0-9a-f]+) \| (\S+) \| (\S+) \|$",
        DOCUMENT.read_text(),
        re.MULTILINE,
    )
    return [(*(int(cell, 0) for cell in row[:6]), float(row[6]), float(row[7])) for row in rows]


def test_published_vectors() -> None:
    """Every row of the document's table is what both implementations compute."""
    vectors = documented_vectors()
    assert len(vectors) >= 10
    assert {row[3] for row in vectors} == set(Purpose)
    for seed, choice, position, purpose, token, bits, u, g in vectors:
        assert reference_bits(seed, choice, position, purpose, token) == bits
        assert ((bits >> 12) + 0.5) * 2.0**-52 == u
        key = keys([seed], [choice], [position], Purpose(purpose))
        assert int(absorb(key, token)[0]) & MASK == bits
        assert int(absorb(torch.from_numpy(key), token)[0]) & MASK == bits
        assert gumbel(torch.from_numpy(key), torch.tensor([[token]])).item() == pytest.approx(g, rel=1e-14)


@settings(deadline=None)
@given(WORDS, WORDS, st.integers(0, 1 << 40), st.sampled_from(Purpose), st.lists(st.integers(0, 1 << 20), min_size=1))
def test_bits_are_those_of_plain_integers(
    seed: int, choice: int, position: int, purpose: Purpose, tokens: list[int]
) -> None:
    """Numpy and torch agree with arbitrary-precision integers on every bit, whatever the signs."""
    expected = [reference_bits(seed, choice, position, purpose, token) for token in tokens]
    key = keys([seed], [choice], [position], purpose)
    assert [int(word) & MASK for word in absorb(np.repeat(key, len(tokens)), np.array(tokens))] == expected
    noise = gumbel(torch.from_numpy(key), torch.tensor([tokens]))[0].tolist()
    assert noise == pytest.approx(
        [-math.log(-math.log(((bits >> 12) + 0.5) * 2.0**-52)) for bits in expected], rel=1e-13
    )
    zero = reference_bits(seed, choice, position, purpose, 0)
    base = absorb(request_keys([seed], [choice]), np.array([position]))
    assert uniform(base, purpose)[0] == ((zero >> 12) + 0.5) * 2.0**-52


def test_ids_are_outputs_of_splitmix64() -> None:
    """Token ids index the SplitMix64 sequence seeded with the key: its known first outputs for seed 0."""
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(word) & MASK for word in absorb(np.zeros(3, dtype=np.int64), np.arange(3))] == outputs


@pytest.mark.parametrize(("bits", "u"), [(MASK, 1.0 - 2.0**-53), (0, 2.0**-53)])
def test_the_extremes_are_finite(bits: int, u: float) -> None:
    """The largest and smallest possible uniforms lie inside (0, 1), so no noise is infinite."""
    key = np.array([wrapped(unmixed(bits) - 0x9E3779B97F4A7C15)])
    assert int(absorb(key, 0)[0]) & MASK == bits
    noise = gumbel(torch.from_numpy(key), torch.tensor([[0]])).item()
    assert noise == pytest.approx(-math.log(-math.log(u)), rel=1e-12)


def test_noise_range() -> None:
    """NOISE_RANGE is the distance between the extremes."""
    assert pytest.approx(-math.log(-math.log1p(-(2.0**-53))) + math.log(-math.log(2.0**-53))) == NOISE_RANGE


@settings(deadline=None)
@given(WORDS)
def test_the_finaliser_loses_nothing(word: int) -> None:
    """Mix is a bijection, so different keys never meet in it."""
    mixed = mix(np.array([wrapped(word)]))
    assert unmixed(int(mixed[0]) & MASK) == word
    assert int(mix(torch.tensor([wrapped(word)]))[0]) == int(mixed[0])


def test_rows_do_not_depend_on_each_other() -> None:
    """A row's noise is the same alone and in a batch, for shared and for own ids."""
    key = torch.from_numpy(keys(list(range(50)), [0] * 50, [7] * 50, Purpose.TARGET))
    ids = torch.arange(33)[None]
    together = gumbel(key, ids)
    for row in range(50):
        assert torch.equal(gumbel(key[row : row + 1], ids), together[row : row + 1])
    assert torch.equal(gumbel(key, ids.repeat(50, 1)), together)


def test_uniform_and_gumbel_follow_their_distributions() -> None:
    """A hundred equal bins of the uniforms, and of the noise by its own distribution function."""
    base = absorb(request_keys(range(100_000), [3] * 100_000), np.full(100_000, 11))
    u = uniform(base, Purpose.ACCEPT)
    assert p_value(np.histogram(u, 100, (0.0, 1.0))[0], np.full(100, 0.01)) > FALSE_ALARM
    noise = gumbel(torch.from_numpy(absorb(base, int(Purpose.TARGET))), torch.tensor([[5]])).numpy()
    assert p_value(np.histogram(np.exp(-np.exp(-noise)), 100, (0.0, 1.0))[0], np.full(100, 0.01)) > FALSE_ALARM


def streams() -> dict[str, np.ndarray]:
    """Uniforms of 60,000 consecutive seeds that differ in one field each."""
    n = 60_000
    requests = request_keys(range(n), [0] * n)

    def at(position: int, purpose: Purpose, requests: np.ndarray = requests) -> np.ndarray:
        return uniform(absorb(requests, np.full(n, position)), purpose)

    named = {purpose.name: at(40, purpose) for purpose in Purpose}
    named["next position"] = at(41, Purpose.TARGET)
    named["next choice"] = at(40, Purpose.TARGET, request_keys(range(n), [1] * n))
    named["next seed"] = at(40, Purpose.TARGET, request_keys(range(1, n + 1), [0] * n))
    key = absorb(absorb(requests, np.full(n, 40)), int(Purpose.TARGET))
    named["next id"] = np.exp(-np.exp(-gumbel(torch.from_numpy(key), torch.tensor([[1]])).numpy()[:, 0]))
    return named


def test_streams_are_independent() -> None:
    """Pairs of numbers that differ in one field, or in purpose, fill a 10 x 10 grid evenly."""
    for (first, xs), (second, ys) in combinations(streams().items(), 2):
        grid = np.histogram2d(xs, ys, 10, ((0.0, 1.0), (0.0, 1.0)))[0]
        assert p_value(grid, np.full((10, 10), 0.01)) > FALSE_ALARM, (first, second)
