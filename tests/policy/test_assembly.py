"""Who may join a batch."""

from __future__ import annotations

from wisp.policy.assembly import Assembly
from wisp.policy.batch_time import BatchShape
from wisp.policy.scheduler import SchedulerLimits
from wisp.types import VerificationRequest

LIMITS = SchedulerLimits(max_batch_requests=3, max_batch_tokens=64, max_prefill_tokens=32)


def positions(shape: BatchShape) -> float:
    return float(shape.num_new)


def request(name: str, draft: int = 3, prefill: int = 0) -> VerificationRequest:
    return VerificationRequest(name, 1, 100 + prefill, 99, draft, 0.0)


def sizes(batch: Assembly) -> list[tuple[str, int]]:
    return [(name, member.num_new_tokens) for name, member in batch.members.items()]


def test_nobody_joins_at_the_cost_of_a_member() -> None:
    """A batch is never longer than the shortest time its members have."""
    batch = Assembly(LIMITS, positions)
    assert batch.add(request("a"), 3, time_left=6.0)
    assert not batch.add(request("b", draft=5), 5, time_left=4.0)
    assert batch.add(request("c", draft=5), 5, time_left=9.0)
    assert sizes(batch) == [("a", 4), ("c", 1)]
    assert batch.time == 5.0


def test_a_draft_gives_way_before_its_request_does() -> None:
    """With no time for the draft, the round is answered without it."""
    batch = Assembly(LIMITS, positions)
    assert batch.add(request("a"), 3, time_left=2.0)
    assert sizes(batch) == [("a", 1)]


def test_a_prompt_is_cut_to_the_time_there_is() -> None:
    """A chunk of it cannot miss a deadline, but can make others miss theirs."""
    batch = Assembly(LIMITS, positions)
    batch.add(request("a"), 3, time_left=14.0)
    assert batch.add(request("b", prefill=40), 3, time_left=1.0)
    assert sizes(batch) == [("a", 4), ("b", 8)]


def test_the_first_may_always_join() -> None:
    """In its cheapest form, however late it is; then nothing longer may."""
    batch = Assembly(LIMITS, positions)
    batch.protect(0.5)
    assert batch.add(request("a", prefill=20), 3, time_left=1.0)
    assert sizes(batch) == [("a", 2)]
    assert not batch.add(request("b"), 3, time_left=99.0)


def test_protection_that_comes_too_late_is_none() -> None:
    """A batch that is longer already is not stopped by it."""
    batch = Assembly(LIMITS, positions)
    batch.add(request("a"), 3, time_left=50.0)
    batch.protect(3.0)
    assert batch.add(request("b"), 3, time_left=50.0)
    batch.protect(9.0)
    assert batch.add(request("c"), 3, time_left=50.0)
    assert sizes(batch)[-1] == ("c", 1)


def test_limits_of_the_batch_hold() -> None:
    """Requests, positions, and positions of prompts."""
    batch = Assembly(LIMITS, positions)
    for name in "abc":
        assert batch.add(request(name, prefill=20), 30, time_left=1e9) == (name != "c")
    assert sizes(batch) == [("a", 51), ("b", 12)]
    assert not batch.full
    assert batch.add(request("d"), 3, time_left=1e9)
    assert batch.full
    assert not batch.add(request("e"), 3, time_left=1e9)
