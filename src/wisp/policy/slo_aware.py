"""The SLO-aware verification batch scheduler (paper: verification batch scheduler), with lazy dispatch.

d_j     deadline of request j's verdict at the server (its return delay is taken off already);  slack_j = d_j - now - V
V(B)    the estimate of a batch's time, with its safety;  V_fill: of a batch filled to the level below
g_j     1 + sum of survival: tokens that verifying j is expected to commit;  density: g_j / deltaV_j

When:   a batch is dispatched once its waiting positions reach the fill level (`fill` times the ridge), one request is
        urgent (d_j - now <= 2 V_fill: it cannot wait for another batch) or has waited `max_wait`, or the engine is
        hardly used anyway.
What:   1. the oldest request, if it has waited `max_age`: nobody starves
        2. urgent ones by deadline, as long as nobody in the batch misses because of it; one whose deadline cannot be
           kept even by a batch of its own goes to the best-effort lane
        3. the others by density, as long as V(B) <= max(V_fill, min(pace, earliest deadline among them) / 2), pace being
           the time in which the fastest session plays what a round commits: who is drafting now comes back soon
        4. the best-effort lane, as long as nobody misses because of it
How much: a draft's tail is cut where its survival falls below the price of a position.
Who:    sessions are admitted while those there can be served at their speeds, by the estimate, and fit the KV budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from math import inf
from typing import Protocol

from wisp.policy.assembly import Assembly
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.prices import FleetMeter
from wisp.policy.residency import KVResidency
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.waiting import WaitingRequests
from wisp.types import (
    Admitted,
    Batch,
    BatchMember,
    Prices,
    RetryAfter,
    SessionDemand,
    SessionId,
    VerificationRequest,
    WaitUntil,
)


class BatchTimeEstimator(Protocol):
    """Knows how long a batch will take, in seconds; `observe` is told how long it took."""

    @property
    def model(self) -> BatchTimeModel: ...

    def predict(self, shape: BatchShape) -> float: ...

    def upper(self, shape: BatchShape) -> float:
        """What the batch exceeds once in twenty times."""
        ...

    def observe(self, shape: BatchShape, elapsed: float) -> None: ...


@dataclass(frozen=True, slots=True)
class SLOAwareSettings:
    """The thresholds of the rule above."""

    fill: float = 1.5
    """Level to which batches are filled while there is time, in units of the fitted ridge."""
    max_wait: float = 0.25
    """Seconds that a request waits for company at most."""
    lazy_utilisation: float = 0.5
    """Below this share of busy time the engine waits for nobody; above 1: it never waits."""
    trims: bool = True
    """Whether drafts are cut where their survival falls below the price of a position."""
    max_age: float = 5.0
    """Seconds after which a request goes first, whatever its deadline and density."""
    max_load: float = 0.9
    """Share of the engine's time that admitted sessions may need at their speeds."""
    kv_overcommit: float = 2.0
    """Tokens that admitted sessions may come to, in units of the KV cache: idle ones are evicted."""
    max_skipped: int = 32
    """Requests that did not fit, after which a batch looks for no others of their kind."""
    max_given_up: int = 128
    """Requests found late per batch."""


class SLOAwareScheduler:
    """See the module."""

    def __init__(
        self,
        limits: SchedulerLimits,
        estimator: BatchTimeEstimator,
        settings: SLOAwareSettings | None = None,
        meter: FleetMeter | None = None,
    ) -> None:
        self.estimator = estimator
        self._limits = limits
        self._settings = settings or SLOAwareSettings()
        self._meter = meter or FleetMeter()
        self._waiting = WaitingRequests()
        self._sessions: dict[SessionId, SessionDemand] = {}
        self._residency = KVResidency(limits.kv_capacity_tokens, limits.occupied)
        self._evicting: tuple[SessionId, ...] = ()
        self._now = 0.0
        self._fastest = 0.0  # tokens per second, of all sessions

    # Sessions

    def admit(self, session: SessionDemand, now: float) -> Admitted | RetryAfter:
        reason = None if session.session_id in self._sessions else self._objection(session)
        if reason is not None:
            return RetryAfter(self._limits.retry_after, reason)
        self._sessions[session.session_id] = session
        self._fastest = max(self._fastest, _tokens_per_s(session))
        return Admitted()

    def release(self, session_id: SessionId) -> None:
        self.cancel(session_id)
        gone = self._sessions.pop(session_id, None)
        if gone is not None and _tokens_per_s(gone) == self._fastest:
            self._fastest = max(map(_tokens_per_s, self._sessions.values()), default=0.0)
        self._residency.forget(session_id)

    def cached(self, session_id: SessionId, num_cached_tokens: int, now: float) -> None:
        self._residency.note(session_id, num_cached_tokens)

    def _objection(self, session: SessionDemand) -> str | None:
        """Why a session may not start; the first one always may."""
        if len(self._sessions) >= self._limits.max_sessions:
            return f"all {self._limits.max_sessions} sessions are taken"
        if not self._sessions:
            return None
        demands = [*self._sessions.values(), session]
        if sum(map(_tokens_per_s, demands)) * self._time_per_token() > self._settings.max_load:
            return f"the {len(self._sessions)} sessions it has take all of its time"
        tokens = sum(demand.num_history_tokens + demand.max_new_tokens for demand in demands)
        if tokens > self._settings.kv_overcommit * self._limits.kv_capacity_tokens:
            return f"the {len(self._sessions)} sessions it has take all of its KV cache"
        return None

    def _time_per_token(self) -> float:
        """Seconds of engine time that a committed token takes in a filled batch."""
        typical = self._meter.typical
        shape = self._fill_shape()
        return self.estimator.predict(shape) / (shape.num_requests * typical.num_committed)

    # The queue

    def add(self, request: VerificationRequest) -> None:
        self._waiting.add(request, self._density(request))

    def cancel(self, session_id: SessionId) -> None:
        self._waiting.remove(session_id)

    def _density(self, request: VerificationRequest) -> float:
        """Tokens that it is expected to commit per second that it adds to a filled batch, its prefill included."""
        shape = self._fill_shape()
        num_new = request.num_prefill_tokens + 1 + request.num_draft_tokens
        model = self.estimator.model
        added = model.predict(shape.plus(num_new, request.num_cached_tokens)) - model.predict(shape)
        return (1.0 + sum(request.survival)) / max(added, 1e-9)

    # Batches

    def schedule(self, now: float) -> Batch | WaitUntil:
        self._now = now
        until = self._dispatch_time(now)
        if until > now:
            return WaitUntil(until)
        members = list(self._compose(now))
        self._waiting.put_back()
        self._make_room(members)
        for member in members:
            self._take(member)
        return Batch(tuple(members)) if members else WaitUntil()

    def evictions(self) -> tuple[SessionId, ...]:
        evicting, self._evicting = self._evicting, ()
        return evicting

    def prices(self) -> Prices:
        return self._meter.prices(self.estimator.model, self._now)

    def observe(self, batch: Batch, now: float, elapsed: float, num_committed: int) -> None:
        shape = BatchShape.of(batch)
        self.estimator.observe(shape, elapsed)
        rounds = sum(member.completes for member in batch.members)
        self._meter.observe(shape, now, elapsed, rounds, num_committed)

    def _dispatch_time(self, now: float) -> float:
        """When to run what waits: `now`, or until when every slack allows to wait for more."""
        waiting, settings = self._waiting, self._settings
        if not waiting:
            return inf
        filled = waiting.num_tokens >= settings.fill * self.estimator.model.fill_tokens
        if filled or waiting.late or self._meter.utilisation(now) < settings.lazy_utilisation:
            return now
        oldest = next(iter(waiting.requests.values()))
        return min(oldest.arrival + settings.max_wait, waiting.by_deadline.first_key - self._horizon())

    def _compose(self, now: float) -> Iterator[BatchMember]:
        """Members in the order of the rule."""
        batch = Assembly(self._limits, self.estimator.upper)
        price = self.prices().per_position if self._settings.trims else 0.0
        oldest = next(iter(self._waiting.requests.values()))
        if now - oldest.arrival >= self._settings.max_age:
            batch.add(oldest, _worthwhile(oldest, price), inf)
        self._add_urgent(batch, now, price)
        self._add_dense(batch, now, price)
        for request in self._not_in(batch, islice(self._waiting.late, 2 * self._settings.max_skipped)):
            time_left = request.deadline - now
            rescued = time_left >= self._time_alone(request)  # its prompt went faster than was thought
            batch.add(request, _worthwhile(request, price), time_left if rescued else inf)
        return iter(batch.members.values())

    def _add_urgent(self, batch: Assembly, now: float, price: float) -> None:
        urgent = self._waiting.by_deadline.drain(now + self._horizon())
        skipped = given_up = 0
        while not batch.full and skipped < self._settings.max_skipped and given_up < self._settings.max_given_up:
            request = next(self._not_in(batch, urgent), None)
            if request is None:
                return
            time_left, alone = request.deadline - now, self._time_alone(request)
            if alone > time_left:
                self._waiting.give_up(request.session_id)
                given_up += 1
            elif not batch.add(request, _worthwhile(request, price), time_left):
                batch.protect(time_left - alone)
                skipped += 1

    def _add_dense(self, batch: Assembly, now: float, price: float) -> None:
        batch.protect(self._patience(self._waiting.by_deadline.first_key - now))
        skipped = 0
        for request in self._not_in(batch, self._waiting.by_density.drain()):
            if not batch.add(request, _worthwhile(request, price), request.deadline - now):
                skipped += 1
            if batch.full or skipped == self._settings.max_skipped:
                return

    def _not_in(self, batch: Assembly, session_ids: Iterator[SessionId]) -> Iterator[VerificationRequest]:
        return (self._waiting.requests[one] for one in session_ids if one not in batch.members)

    def _make_room(self, members: list[BatchMember]) -> None:
        self._evicting = self._residency.make_room(members, self._waiting.requests)
        for session_id in self._evicting:
            if session_id in self._waiting.requests:
                self._update(self._waiting.requests[session_id], 0)

    def _take(self, member: BatchMember) -> None:
        """Remove a member's request from the queue, or note its progress."""
        if member.completes:
            self._waiting.remove(member.request.session_id)
        else:
            self._update(member.request, member.request.num_cached_tokens + member.num_prefill_tokens)

    def _update(self, request: VerificationRequest, num_cached: int) -> None:
        request = replace(request, num_cached_tokens=num_cached)
        self._waiting.update(request, self._density(request))

    # Times

    def _fill_shape(self) -> BatchShape:
        return self._meter.typical.batch(self._settings.fill * self.estimator.model.fill_tokens)

    def _horizon(self) -> float:
        """Two filled batches: what cannot wait for so long is urgent."""
        return 2.0 * self.estimator.upper(self._fill_shape())

    def _patience(self, next_time_left: float) -> float:
        """How long a batch may take that nobody is in a hurry for: those come who are drafting now."""
        pace = self._meter.typical.num_committed / self._fastest if self._fastest > 0.0 else inf
        return max(self._horizon(), min(pace, next_time_left)) / 2

    def _time_alone(self, request: VerificationRequest) -> float:
        """Of the batches that it takes to answer it, with nobody else in them."""
        upper, chunk = self.estimator.upper, self._limits.max_prefill_tokens
        prefill, cached = request.num_prefill_tokens, request.num_cached_tokens
        num_chunks = max(0, -(-prefill // chunk) - 1)
        last = BatchShape().plus(prefill - num_chunks * chunk + 1, cached + num_chunks * chunk)
        if num_chunks == 0:
            return upper(last)
        return num_chunks * upper(BatchShape().plus(chunk, cached + prefill // 2)) + upper(last)


def _worthwhile(request: VerificationRequest, price: float) -> int:
    """Drafted tokens whose survival is at least the price of a position; all where nothing is known of them."""
    if not request.survival:
        return request.num_draft_tokens
    return sum(1 for _ in takewhile(lambda survival: survival >= price, request.survival))


def _tokens_per_s(demand: SessionDemand) -> float:
    return demand.slo.tokens_per_s if demand.slo is not None else 0.0
