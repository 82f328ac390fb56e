"""The queue: every request is served, in order, within the limits of a batch and of the KV cache."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.residency import GONE_AFTER
from wisp.policy.scheduler import FCFSScheduler, SchedulerLimits
from wisp.types import Admitted, Batch, Prices, RetryAfter, SessionDemand, VerificationRequest, WaitUntil

LIMITS = SchedulerLimits(
    max_sessions=3, max_batch_requests=2, max_batch_tokens=16, max_prefill_tokens=8, kv_capacity_tokens=40
)


def request(
    session: str, history: int = 1, cached: int = 0, draft: int = 0, arrival: float = 0.0
) -> VerificationRequest:
    return VerificationRequest(session, 1, history, cached, draft, arrival)


def batch(scheduler: FCFSScheduler) -> Batch:
    decision = scheduler.schedule(0.0)
    assert isinstance(decision, Batch)
    return decision


def test_an_empty_queue_waits_for_an_arrival() -> None:
    """Nothing to do means waiting without a time limit."""
    assert FCFSScheduler(LIMITS).schedule(1.0) == WaitUntil()


def test_requests_are_served_in_the_order_of_arrival() -> None:
    """The oldest requests form the batch."""
    scheduler = FCFSScheduler(LIMITS)
    for name in "abc":
        scheduler.add(request(name))
    assert [member.request.session_id for member in batch(scheduler).members] == ["a", "b"]
    assert [member.request.session_id for member in batch(scheduler).members] == ["c"]


def test_a_newer_request_of_a_session_replaces_the_older() -> None:
    """A session never has two requests in the queue."""
    scheduler = FCFSScheduler(LIMITS)
    scheduler.add(request("a"))
    scheduler.add(replace(request("a"), round=2))
    assert [member.request.round for member in batch(scheduler).members] == [2]
    assert scheduler.schedule(0.0) == WaitUntil()


def test_a_long_prompt_is_prefilled_in_chunks() -> None:
    """A prompt longer than the prefill limit takes several batches, and only the last one verifies."""
    scheduler = FCFSScheduler(LIMITS)
    scheduler.add(request("a", history=20, draft=3))
    steps = [batch(scheduler).members[0] for _ in range(3)]
    assert [(member.num_prefill_tokens, member.num_verified) for member in steps] == [(8, None), (8, None), (3, 3)]
    assert [member.completes for member in steps] == [False, False, True]
    assert [member.num_new_tokens for member in steps] == [8, 8, 7]


def test_a_draft_is_trimmed_to_the_room_left_in_the_batch() -> None:
    """A draft that does not fit whole is verified in part."""
    scheduler = FCFSScheduler(replace(LIMITS, max_batch_tokens=4))
    scheduler.add(request("a", draft=9))
    assert batch(scheduler).members[0].num_verified == 3


def test_a_request_without_room_waits_for_the_next_batch() -> None:
    """What does not fit stays in the queue, in its place."""
    scheduler = FCFSScheduler(replace(LIMITS, max_batch_tokens=4))
    scheduler.add(request("a", draft=3))
    scheduler.add(request("b"))
    assert [member.request.session_id for member in batch(scheduler).members] == ["a"]
    assert [member.request.session_id for member in batch(scheduler).members] == ["b"]


def test_cancelled_and_released_sessions_are_not_served() -> None:
    """Cancelling takes the request; releasing takes the session."""
    scheduler = FCFSScheduler(LIMITS)
    scheduler.add(request("a"))
    scheduler.add(request("b"))
    scheduler.cancel("a")
    scheduler.release("b")
    assert scheduler.schedule(0.0) == WaitUntil()


def test_a_session_without_cache_is_nothing_to_evict() -> None:
    """A session that lost its cache no longer occupies any."""
    scheduler = FCFSScheduler(LIMITS)
    scheduler.cached("a", 30, 0.0)
    scheduler.cached("a", 0, 1.0)
    scheduler.add(request("b", history=8))
    batch(scheduler)
    assert scheduler.evictions() == ()


def test_admission_counts_sessions() -> None:
    """A full server refuses new sessions, admits known ones again, and takes new ones when one has left."""
    scheduler = FCFSScheduler(LIMITS)
    demands = [SessionDemand(name, 1, 1) for name in "abcd"]
    assert [scheduler.admit(demand, 0.0) for demand in demands[:3]] == [Admitted()] * 3
    refused = scheduler.admit(demands[3], 0.0)
    assert isinstance(refused, RetryAfter)
    assert refused.retry_after == LIMITS.retry_after
    assert scheduler.admit(demands[0], 0.0) == Admitted()
    scheduler.release("a")
    assert scheduler.admit(demands[3], 0.0) == Admitted()


def test_whoever_entered_last_makes_room() -> None:
    """For the growth of a session that was there before; he keeps his place and is prefilled anew."""
    scheduler = FCFSScheduler(replace(LIMITS, max_batch_requests=1))
    scheduler.cached("a", 20, 0.0)
    scheduler.cached("b", 20, 0.0)
    scheduler.add(request("a", history=21, cached=20, draft=1))
    scheduler.add(request("b", history=21, cached=20, draft=1))
    assert [member.request.session_id for member in batch(scheduler).members] == ["a"]
    assert scheduler.evictions() == ("b",)
    assert scheduler.evictions() == ()
    scheduler.cached("a", 22, 0.0)
    assert scheduler.schedule(0.0) == WaitUntil(GONE_AFTER)
    scheduler.release("a")
    assert batch(scheduler).members[0].num_prefill_tokens == 8


def test_who_has_no_room_in_the_cache_waits_and_is_not_overtaken() -> None:
    """Not by a smaller one that would fit; those in the cache go on."""
    scheduler = FCFSScheduler(LIMITS)
    scheduler.cached("a", 20, 0.0)
    scheduler.add(request("large", history=30))
    scheduler.add(request("small", history=4))
    scheduler.add(request("a", history=21, cached=20))
    assert [member.request.session_id for member in batch(scheduler).members] == ["a"]
    scheduler.release("a")
    assert batch(scheduler).members[0].request.session_id == "large"


def test_members_that_cannot_fit_the_cache_together_go_one_after_the_other() -> None:
    """Two requests that exceed the cache together run in two batches."""
    scheduler = FCFSScheduler(replace(LIMITS, max_batch_tokens=64, max_prefill_tokens=64))
    scheduler.add(request("a", history=30))
    scheduler.add(request("b", history=30))
    assert [member.request.session_id for member in batch(scheduler).members] == ["a"]


def test_cache_is_counted_in_pages() -> None:
    """A token more than a page occupies two."""
    limits = replace(LIMITS, kv_page_tokens=16)
    assert [limits.occupied(tokens) for tokens in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_first_come_first_served_charges_nothing() -> None:
    """Prices belong to schedulers that estimate."""
    assert FCFSScheduler(LIMITS).prices() == Prices()


REQUESTS = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 29), st.integers(0, 9)).map(
        lambda shape: (shape[0], min(shape[1], shape[0] - 1), shape[2])
    ),
    min_size=1,
    max_size=12,
)


@given(REQUESTS)
def test_everything_is_served_once_in_order_and_within_all_limits(shapes: list[tuple[int, int, int]]) -> None:
    """No starvation, no overtaking among equals, no batch or cache beyond its limit."""
    scheduler = FCFSScheduler(LIMITS)
    resident: dict[str, int] = {}
    for index, (history, cached, draft) in enumerate(shapes):
        name = str(index)
        fits = sum(resident.values()) + cached <= LIMITS.kv_capacity_tokens
        scheduler.add(request(name, history, cached if fits else 0, draft))
        if fits and cached:
            resident[name] = cached
            scheduler.cached(name, cached, 0.0)
    served: list[str] = []
    now = 0.0
    for _ in range(200):
        decision = scheduler.schedule(now)
        if isinstance(decision, WaitUntil):
            for evicted in scheduler.evictions():
                resident.pop(evicted)
            if decision.time == inf:
                break
            now = decision.time
            continue
        for evicted in scheduler.evictions():
            resident.pop(evicted)
        assert 0 < len(decision.members) <= LIMITS.max_batch_requests
        assert decision.num_new_tokens <= LIMITS.max_batch_tokens
        assert sum(member.num_prefill_tokens for member in decision.members) <= LIMITS.max_prefill_tokens
        for member in decision.members:
            name = member.request.session_id
            assert member.request.num_cached_tokens == resident.get(name, 0)
            resident[name] = member.request.num_cached_tokens + member.num_new_tokens
            scheduler.cached(name, resident[name], now)
            served += [name] if member.completes else []
        assert sum(resident.values()) <= LIMITS.kv_capacity_tokens
    assert sorted(served, key=int) == [str(index) for index in range(len(shapes))]
    for shape in set(shapes):
        equals = [name for name in served if shapes[int(name)] == shape]
        assert equals == sorted(equals, key=int)


def test_limits_of_one_token_still_make_progress() -> None:
    """A request whose verification needs one position gets it even in the smallest batch."""
    scheduler = FCFSScheduler(SchedulerLimits(max_batch_tokens=1, max_prefill_tokens=1))
    scheduler.add(request("a", history=3, draft=2))
    steps = [batch(scheduler).members[0] for _ in range(3)]
    assert [member.num_verified for member in steps] == [None, None, 0]


@pytest.mark.parametrize("draft", [0, 5])
def test_a_batch_member_knows_its_positions(draft: int) -> None:
    """New positions are the prefill, the last history token and the draft."""
    scheduler = FCFSScheduler(SchedulerLimits())
    scheduler.add(request("a", history=4, draft=draft))
    assert batch(scheduler).num_new_tokens == 4 + draft
