"""Drafting on the server: how many tokens, as the load and the acceptance have it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.test_scheduler import request
from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.co_located import CoLocatedDrafting, CoLocatedSettings, _acceptance
from wisp.policy.scheduler import FCFSScheduler, SchedulerLimits
from wisp.types import Batch, VerificationRequest, WaitUntil

TARGET = BatchTimeModel(fixed_s=0.03, per_token_s=1e-4, per_token_above_ridge_s=1e-3, ridge_tokens=32.0)
DRAFTER = BatchTimeModel(fixed_s=0.002, per_token_s=0.0)


def _scheduler(**settings: float) -> CoLocatedDrafting:
    inner = FCFSScheduler(SchedulerLimits())
    return CoLocatedDrafting(inner, lambda: TARGET, DRAFTER, CoLocatedSettings(**settings))  # type: ignore[arg-type]


def _plain(name: str, most: int = 15) -> VerificationRequest:
    return replace(request(name), max_own_draft=most)


def _run(scheduler: CoLocatedDrafting, size: int, accepted_per_round: float, num_batches: int) -> None:
    """Batches of `size` requests, so many of whose drafted tokens are accepted on average."""
    for _ in range(num_batches):
        for i in range(size):
            scheduler.add(_plain(str(i)))
        batch = scheduler.schedule(0.0)
        assert isinstance(batch, Batch)
        drafted = any(member.num_verified for member in batch.members)
        scheduler.observe(batch, 0.0, 0.05, round(size * (1 + (accepted_per_round if drafted else 0))))


def test_plain_decoding_is_drafted_and_what_devices_drafted_is_left_alone() -> None:
    """The server's tokens count as the request's own, up to what the round still asks for."""
    scheduler = _scheduler()
    assert scheduler.length > 2
    scheduler.add(_plain("a"))
    scheduler.add(_plain("b", most=1))
    scheduler.add(request("c", draft=2))
    batch = scheduler.schedule(0.0)
    assert isinstance(batch, Batch)
    found = [(one.num_verified, one.request.drafted_here) for one in batch.members]
    assert found == [(scheduler.length, True), (1, True), (2, False)]
    assert batch.members[0].request.survival == pytest.approx([0.7 ** (i + 1) for i in range(scheduler.length)])


def test_drafts_get_shorter_as_batches_grow() -> None:
    """Above the ridge of the batch time a drafted position costs what a decoded one does."""
    alone, crowded = _scheduler(), _scheduler()
    _run(alone, 1, 3.0, 100)
    _run(crowded, 120, 0.7, 100)
    assert alone.length > crowded.length


def test_nothing_is_drafted_for_long_where_nothing_is_accepted() -> None:
    """Only every so many requests probe whether that still holds."""
    scheduler = _scheduler(probe_every=10)
    _run(scheduler, 4, 0.0, 200)
    assert scheduler.length == 0
    lengths = []
    for i in range(40):
        scheduler.add(_plain(str(i)))
        batch = scheduler.schedule(0.0)
        assert isinstance(batch, Batch)
        lengths.append(batch.members[0].num_verified)
    assert sorted(lengths) == [0] * 36 + [1] * 4


@pytest.mark.parametrize("acceptance", [0.05, 0.3, 0.7, 0.95])
def test_acceptance_is_found_again_from_accepted_tokens(acceptance: float) -> None:
    """The inverse of a + a^2 + ... + a^k."""
    expected = sum(acceptance ** (i + 1) for i in range(5))
    assert _acceptance(expected, 5.0) == pytest.approx(acceptance, abs=1e-3)


def test_the_rest_is_the_inner_schedulers() -> None:
    """Cancelling a drafted request takes it out of the queue."""
    scheduler = _scheduler()
    scheduler.add(_plain("a"))
    scheduler.cancel("a")
    assert scheduler.schedule(0.0) == WaitUntil()
