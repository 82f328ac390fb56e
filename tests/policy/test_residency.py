"""The KV cache: who makes room for whom."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.residency import KVResidency
from wisp.types import BatchMember, VerificationRequest

CAPACITY = 64


def member(name: str, cached: int, new: int) -> BatchMember:
    return BatchMember(VerificationRequest(name, 1, cached + 1, cached, new - 1, 0.0), 0, new - 1)


def pages(num_tokens: int) -> int:
    return -(-num_tokens // 8) * 8


def test_whoever_has_been_idle_longest_goes_first() -> None:
    """Idle sessions, then waiting ones from the end of the queue, and no more of them than needed."""
    residency = KVResidency(CAPACITY, pages)
    for name in "abcd":
        residency.note(name, 16)
    residency.note("a", 16)
    waiting = OrderedDict((name, member(name, 16, 1).request) for name in "cd")
    assert residency.make_room([member("e", 0, 33)], waiting) == ("b", "a", "d")
    assert residency.make_room([member("e", 0, 33)], waiting) == ()


def test_members_that_do_not_fit_are_dropped_with_their_cache() -> None:
    """Two that grow beyond the cache together: the later one gives way."""
    residency = KVResidency(CAPACITY, pages)
    residency.note("a", 32)
    residency.note("b", 32)
    members = [member("a", 32, 8), member("b", 32, 8), member("c", 0, 8)]
    assert residency.make_room(members, OrderedDict()) == ("b",)
    assert [one.request.session_id for one in members] == ["a"]


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 8)),
    st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, 64), min_size=1),
    st.sets(st.sampled_from("abcdefgh")),
)
def test_what_is_left_always_fits(resident: dict[str, int], growth: dict[str, int], waiting: set[str]) -> None:
    """However much is asked for; and the first member always runs, for no one exceeds the cache alone."""
    residency = KVResidency(CAPACITY, pages)
    for name, tokens in resident.items():
        residency.note(name, tokens)
    members = [member(name, resident.get(name, 0), min(new, CAPACITY - 8)) for name, new in growth.items()]
    first = members[0].request.session_id
    queue = OrderedDict((name, member(name, resident.get(name, 0), 1).request) for name in sorted(waiting))
    evicted = residency.make_room(members, queue)
    kept = {name: tokens for name, tokens in resident.items() if name not in evicted}
    kept |= {one.request.session_id: one.request.num_cached_tokens + one.num_new_tokens for one in members}
    assert sum(pages(tokens) for tokens in kept.values()) <= CAPACITY
    assert members[0].request.session_id == first
    assert not {one.request.session_id for one in members} & set(evicted)
