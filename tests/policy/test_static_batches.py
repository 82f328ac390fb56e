"""SLED's batches: full, or flushed."""

from __future__ import annotations

from tests.policy.test_scheduler import request
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.static_batches import StaticBatchScheduler
from wisp.types import Batch, WaitUntil


def _members(decision: Batch | WaitUntil) -> list[str]:
    assert isinstance(decision, Batch)
    return [member.request.session_id for member in decision.members]


def test_a_full_batch_runs_at_once_and_holds_no_more() -> None:
    """Three of four requests where the size is three; the fourth waits for company."""
    scheduler = StaticBatchScheduler(SchedulerLimits(), size=3, flush_time=1.0)
    for i, name in enumerate("abcd"):
        scheduler.add(request(name, arrival=0.1 * i))
    assert _members(scheduler.schedule(0.4)) == ["a", "b", "c"]
    assert scheduler.schedule(0.4) == WaitUntil(0.1 * 3 + 1.0)


def test_what_waits_too_long_is_flushed() -> None:
    """At the oldest request's arrival plus the flush time, and not before."""
    scheduler = StaticBatchScheduler(SchedulerLimits(), size=3, flush_time=1.0)
    assert scheduler.schedule(0.0) == WaitUntil()
    scheduler.add(request("a", arrival=2.0))
    scheduler.add(request("b", arrival=2.5))
    assert scheduler.schedule(2.9) == WaitUntil(3.0)
    assert _members(scheduler.schedule(3.0)) == ["a", "b"]


def test_a_batch_is_never_larger_than_the_server_takes() -> None:
    """A size above the limit would wait for ever."""
    scheduler = StaticBatchScheduler(SchedulerLimits(max_batch_requests=2), size=8, flush_time=60.0)
    for name in "abc":
        scheduler.add(request(name))
    assert _members(scheduler.schedule(0.0)) == ["a", "b"]
