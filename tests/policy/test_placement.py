"""Where sessions are placed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.placement import PLACEMENTS, Loads, Placement, by_hash, least_loaded, two_choices

loads = st.lists(st.one_of(st.none(), st.integers(0, 100)), min_size=1, max_size=8)
KEYS = [str(index) for index in range(2000)]


@pytest.mark.parametrize("place", PLACEMENTS.values(), ids=PLACEMENTS)
@given(key=st.text(max_size=5), loads=loads)
def test_sessions_are_only_placed_on_verifiers_that_are_up(place: Placement, key: str, loads: Loads) -> None:
    """And on one of them, as long as there is one."""
    index = place(key, loads)
    if index is None:
        assert all(load is None for load in loads)
    else:
        assert loads[index] is not None


@given(key=st.text(max_size=5), loads=loads.filter(lambda loads: any(load is not None for load in loads)))
def test_the_least_loaded_has_no_more_sessions_than_any_other(key: str, loads: Loads) -> None:
    """Of those that are up."""
    assert loads[least_loaded(key, loads) or 0] == min(load for load in loads if load is not None)


def test_hashing_spreads_keys_evenly() -> None:
    """2,000 keys over 8 verifiers: none is off by more than four standard deviations."""
    shares = Counter(by_hash(key, [0] * 8) for key in KEYS)
    assert all(abs(shares[index] - 250) < 4 * (2000 * 7 / 64) ** 0.5 for index in range(8))


def test_only_the_sessions_of_a_lost_verifier_move() -> None:
    """Everybody else is placed where he was."""
    before = {key: by_hash(key, [0, 0, 0, 0]) for key in KEYS}
    after = {key: by_hash(key, [0, None, 0, 0]) for key in KEYS}
    assert {before[key] for key in KEYS if before[key] != after[key]} == {1}


def test_two_choices_are_nearly_even() -> None:
    """Placed one by one, 2,000 sessions on 8 verifiers end within 5 of each other; by hash alone they do not."""
    counts, hashed = [0] * 8, Counter(by_hash(key, [0] * 8) for key in KEYS)
    for key in KEYS:
        counts[two_choices(key, counts) or 0] += 1
    assert max(counts) - min(counts) <= 5 < max(hashed.values()) - min(hashed.values())
