"""The KV cache: who enters, and who makes room for whom."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.residency import GONE_AFTER, KVResidency
from wisp.types import BatchMember, VerificationRequest

CAPACITY = 64


def request(name: str, history: int, draft: int = 0) -> VerificationRequest:
    return VerificationRequest(name, 1, history, 0, draft, 0.0)


def member(name: str, cached: int, new: int) -> BatchMember:
    return BatchMember(VerificationRequest(name, 1, cached + 1, cached, new - 1, 0.0), 0, new - 1)


def pages(num_tokens: int) -> int:
    return -(-num_tokens // 8) * 8


def holding(**tokens: int) -> KVResidency:
    residency = KVResidency(CAPACITY, pages, reserve=0.0)
    for name, num_tokens in tokens.items():
        residency.note(name, num_tokens, 0.0)
    return residency


def test_a_session_enters_with_all_that_its_request_needs() -> None:
    """Room for history and draft is promised to it: the next one counts on the rest."""
    residency = holding()
    assert residency.enter(request("a", 30, 10), 0.0, ())
    assert "a" in residency
    assert not residency.enter(request("b", 25), 0.0, ())
    assert residency.enter(request("c", 24), 0.0, ())


def test_a_reserve_is_kept_for_growth_where_there_is_anybody_to_grow() -> None:
    """A session alone may fill the cache."""
    residency = KVResidency(CAPACITY, pages, reserve=0.25)
    assert residency.enter(request("a", 40), 0.0, ())
    assert not residency.enter(request("b", 16), 0.0, ())
    assert KVResidency(CAPACITY, pages, reserve=0.25).enter(request("a", 64), 0.0, ())


def test_nobody_is_evicted_for_one_that_enters() -> None:
    """Unless he has been idle for so long that he seems to be gone, and waits for nothing."""
    residency = holding(a=32, b=32)
    residency.note("b", 32, 5.0)
    assert not residency.enter(request("c", 8), GONE_AFTER - 0.1, ())
    assert residency.next_gone(0.0) == GONE_AFTER
    assert not residency.enter(request("c", 8), GONE_AFTER, ("a",))
    assert residency.enter(request("c", 8), GONE_AFTER, ())
    assert residency.take_evicted() == ("a",)
    assert residency.take_evicted() == ()


def test_nobody_is_going_to_be_gone_where_nobody_is() -> None:
    """Nor is it told of one who is gone already: he waits for something."""
    assert holding().next_gone(0.0) == inf
    assert holding(a=8).next_gone(GONE_AFTER) == inf


def test_whoever_entered_last_makes_room_for_growth() -> None:
    """And leaves the batch, if he is in it."""
    residency = holding(a=24, b=24, c=16)
    members = [member("a", 24, 8), member("c", 16, 1)]
    residency.make_room(members)
    assert [one.request.session_id for one in members] == ["a"]
    assert residency.take_evicted() == ("c",)
    assert "b" in residency


def test_the_time_to_enter_follows_from_the_rate_of_late() -> None:
    """None where there is room; else what lacks, over what entered per second."""
    residency = holding()
    residency.enter(request("a", 24), 0.0, ())  # 2.4 tokens per second over the memory of 10 s
    assert residency.time_to_enter(40, 0.0) == 0.0
    residency.note("a", 64, 0.0)
    assert residency.time_to_enter(24, 0.0) == pytest.approx(10.0)


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 8)),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 64), min_size=1),
)
def test_what_is_left_always_fits(resident: dict[str, int], growth: dict[str, int]) -> None:
    """However much those in the cache grow; who entered first runs, for no one exceeds the cache alone."""
    residency = holding(**resident)
    members = [member(name, resident[name], min(new, CAPACITY - 8)) for name, new in growth.items() if name in resident]
    residency.make_room(members)
    evicted = residency.take_evicted()
    kept = {name: tokens for name, tokens in resident.items() if name not in evicted}
    kept |= {one.request.session_id: one.request.num_cached_tokens + one.num_new_tokens for one in members}
    assert sum(pages(tokens) for tokens in kept.values()) <= CAPACITY
    assert not {one.request.session_id for one in members} & set(evicted)
    order = list(resident)
    assert sorted(evicted, key=order.index) == order[len(order) - len(evicted) :]
    assert not resident or order[0] not in evicted


def test_a_drafters_cache_takes_room_as_long_as_it_is_kept() -> None:
    """It is there from a session's first draft on, and gone at once where drafts are not made any more."""
    residency = KVResidency(CAPACITY, pages, reserve=0.0, drafter_share=0.5)
    residency.note("a", 32, 0.0)
    residency.keep_drafts("a", kept=True)
    assert not residency.enter(request("b", 24), 0.0, ())
    residency.keep_drafts("a", kept=False)
    assert residency.enter(request("b", 24), 0.0, ())


def test_who_enters_to_be_drafted_for_needs_room_in_both_caches() -> None:
    """And makes room in both, where growth exceeds the cache."""
    residency = KVResidency(CAPACITY, pages, reserve=0.0, drafter_share=1.0)
    residency.note("a", 16, 0.0)
    residency.keep_drafts("b", kept=True)
    assert not residency.enter(request("b", 32), 0.0, ())
    assert residency.enter(request("b", 24), 0.0, ())
    residency.make_room([member("a", 16, 8)])
    assert residency.take_evicted() == ("b",)


def test_a_history_that_both_caches_cannot_hold_is_not_drafted_for() -> None:
    """It would not fit if it were alone."""
    residency = KVResidency(CAPACITY, pages, reserve=0.0, drafter_share=1.0)
    assert residency.holds_drafts(request("a", 30, 2))
    assert not residency.holds_drafts(request("a", 31, 2))
