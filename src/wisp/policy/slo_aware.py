"""The SLO-aware verification batch scheduler (paper: verification batch scheduler).

d_j     deadline of request j's verdict at the server (its return delay is taken off already);  slack_j = d_j - now - V
V(B)    the estimate of a batch's time, with its safety;  V_fill: of a batch filled to the level below
level   share of a batch's time that its own rounds cause, the rest being what every batch costs; what the recent load
        needs, and at most `fill`

When:   as soon as the engine is free (`eager`, as in all rows of systems.py); or lazily, once the waiting positions reach
        the level, one request is urgent (it cannot wait for two filled batches) or has waited `max_wait`, one is late
        already, or sessions wait for room in the KV cache: whoever is in it should be done soon.
What:   1. the oldest request, if it has waited `max_age`: nobody starves
        2. urgent ones by deadline, as long as nobody in the batch misses because of it; one whose deadline cannot be
           kept even by a batch of its own, or one as long as those who are late would fill, goes to the best-effort lane
        3. the others by deadline (the paper: by density g_j / deltaV_j, g_j = 1 + sum of survival), as long as a filled
           batch can still follow for whoever is due next, those who are drafting now included, or could not anyhow
        4. the best-effort lane, as long as nobody misses because of it (the paper's row: before 3)
How much: a draft's tail is cut where its survival falls below the price of a position.
Who:    sessions are admitted while those there can keep their deadlines (demand.py), by the estimate, and would not wait too
        long for room in the KV cache and for the prompts before them. They enter the cache one after the other, and stay
        until they end or are gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import inf

from wisp.policy.admission import Admission
from wisp.policy.assembly import Assembly
from wisp.policy.batch_time import BatchShape
from wisp.policy.demand import SessionDemands
from wisp.policy.estimator import BatchTimeEstimator
from wisp.policy.prices import UNASSISTED, FleetMeter
from wisp.policy.residency import RESERVE, KVResidency
from wisp.policy.scheduler import NONE_DRAFTED, SchedulerLimits
from wisp.policy.server_drafting import DraftingEstimator, ServerDrafting
from wisp.policy.typical_round import largest_batch
from wisp.policy.waiting import Order, WaitingRequests
from wisp.types import (
    Admitted,
    Batch,
    BatchMember,
    OwnDrafts,
    Prices,
    RetryAfter,
    SessionDemand,
    SessionId,
    VerificationRequest,
    WaitUntil,
)

_LEAST_FILL = 0.05
"""To which batches are filled on an idle server."""


@dataclass(frozen=True, slots=True)
class SLOAwareSettings:
    """The thresholds of the rule above."""

    fill: float = 0.85
    """Level to which batches are filled while there is time: the share of their time that is not the batch's own."""
    target_utilisation: float = 0.9
    """Batches are filled no further than what keeps the engine busy for this share of the time."""
    max_wait: float = 0.25
    """Seconds that a request waits for company at most."""
    eager: bool = False
    """Whether the engine never waits for a fuller batch."""
    by_density: bool = False
    """Whether requests that are not urgent go by density (the paper's rule), and not by deadline as well."""
    late_last: bool = True
    """Whether requests that are late already come after all others, and batches may be as long as they would fill."""
    trims: bool = True
    """Whether drafts are cut where their survival falls below the price of a position."""
    max_age: float = 5.0
    """Seconds after which a request goes first, whatever its deadline and density."""
    max_load: float = 0.9
    """Share of the engine's time that admitted sessions may need to keep their deadlines."""
    max_first_wait: float = 0.7
    """Share of its first token's time limit that a new session may have to wait for room in the KV cache, and then for
    the prompts before it and its own."""
    kv_reserve: float = RESERVE
    """Share of the KV cache that is kept free for growth when a session enters."""
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
        drafting: ServerDrafting | None = None,
    ) -> None:
        self.estimator: BatchTimeEstimator = estimator if drafting is None else DraftingEstimator(estimator, drafting)
        self.drafting = drafting
        """By a drafter beside the target; None: there is none."""
        self._limits = limits
        self._settings = settings = settings or SLOAwareSettings()
        self._meter = meter or FleetMeter()
        self._waiting = WaitingRequests()
        self._demands = SessionDemands()
        self._entering: OrderedDict[SessionId, VerificationRequest] = OrderedDict()
        """Requests that wait for room in the KV cache."""
        share = limits.drafter_kv_share
        self._residency = KVResidency(limits.kv_capacity_tokens, limits.occupied, settings.kv_reserve, share)
        self._admission = Admission(
            limits=limits,
            max_load=settings.max_load,
            max_first_wait=settings.max_first_wait,
            demands=self._demands,
            residency=self._residency,
            meter=self._meter,
            waiting=self._waiting,
            entering=self._entering,
        )
        self._evicting: tuple[SessionId, ...] = ()
        self._now = 0.0
        self._fill: BatchShape | None = None
        """See _fill_shape; None: something that it depends on has changed."""
        self._least = 0.0
        """See _least_time, at the last decision."""
        self._ended: float | None = None
        """When the last batch did; None: what to do next has been asked since."""
        self._away = Order()
        """Sessions that are drafting, by when their next verdict is probably due."""

    def estimate_by(self, make: Callable[[BatchTimeEstimator], BatchTimeEstimator]) -> None:
        """Put what `make` makes of the target's estimator in its place: for studies of estimators."""
        if isinstance(self.estimator, DraftingEstimator):
            self.estimator.target = make(self.estimator.target)
        else:
            self.estimator = make(self.estimator)

    # Sessions

    def admit(self, session: SessionDemand, now: float) -> Admitted | RetryAfter:
        known = session.session_id in self._demands.sessions
        reason = None if known else self._admission.objection(session, self.estimator.predict, now)
        if reason is not None:
            return RetryAfter(self._limits.retry_after, reason)
        self._demands.admit(session, now)
        return Admitted()

    def release(self, session_id: SessionId) -> None:
        self.cancel(session_id)
        self._demands.release(session_id)
        self._away.discard(session_id)
        self._residency.forget(session_id)
        if self.drafting is not None:
            self.drafting.forget(session_id)

    def cached(self, session_id: SessionId, num_cached_tokens: int, now: float) -> None:
        self._residency.note(session_id, num_cached_tokens, now)

    # The queue

    def add(self, request: VerificationRequest) -> None:
        session_id = request.session_id
        now = request.arrival if request.arrival > self._now else self._now
        self.cancel(session_id)
        self._away.discard(session_id)
        self._demands.ask(request, now)
        if self.drafting is not None:
            request = self._drafted(self.drafting, request, now)
        if session_id in self._residency.sessions:
            self._wait(request)
            return
        self._entering[session_id] = request
        self._enter(now)

    def cancel(self, session_id: SessionId) -> None:
        if session_id in self._waiting.requests:
            self._waiting.remove(session_id)
        elif self._entering:
            self._entering.pop(session_id, None)

    def _drafted(self, drafting: ServerDrafting, request: VerificationRequest, now: float) -> VerificationRequest:
        """The request with what the server is going to draft for it; if it does not, a cache in shared memory is given up."""
        drafted = drafting.drafted(request, now)
        if drafted.drafted_here and not self._residency.holds_drafts(drafted):
            drafted = request
        if request.max_own_draft and self._limits.drafter_kv_share:
            self._residency.keep_drafts(request.session_id, kept=drafted.drafted_here)
            if not drafted.drafted_here:
                drafting.forget(request.session_id)
        return drafted

    def _enter(self, now: float) -> None:
        """Let requests join the queue whose sessions fit the KV cache, nobody overtaking another."""
        while self._entering:
            request = next(iter(self._entering.values()))
            if not self._residency.enter(request, now, self._waiting.requests):
                return
            del self._entering[request.session_id]
            self._wait(request)

    def _wait(self, request: VerificationRequest) -> None:
        self._waiting.add(request, self._density(request), self._latest_start(request))

    def _latest_start(self, request: VerificationRequest) -> float:
        """Its deadline, less what it takes to compute its positions in large batches."""
        work = request.num_history_tokens - request.num_cached_tokens + request.num_draft_tokens
        return request.deadline - self.estimator.model.large_position_time(request.num_cached_tokens) * work

    def _density(self, request: VerificationRequest) -> float | None:
        """Tokens that it is expected to commit per second that it adds to a filled batch, its prefill included."""
        if not self._settings.by_density:
            return None
        shape = self._fill_shape()
        num_new = request.num_prefill_tokens + 1 + request.num_draft_tokens
        model = self.estimator.model
        added = model.predict(shape.plus(num_new, request.num_cached_tokens)) - model.predict(shape)
        return (1.0 + sum(request.survival)) / max(added, 1e-9)

    # Batches

    def schedule(self, now: float) -> Batch | WaitUntil:
        self._now, self._fill = max(now, self._now), None
        ended, self._ended = self._ended, None
        self._least = self._least_time()
        self._enter(now)
        until = self._dispatch_time(now)
        if until > now:
            self._evicting = self._take_evicted()
            return WaitUntil(min(until, self._residency.next_gone(now)) if self._entering else until)
        if self.drafting is not None:
            self.drafting.see(len(self._waiting.requests), len(self._entering), len(self._residency.sessions))
        members = list(self._compose(now))
        self._waiting.put_back()
        self._make_room(members)
        for member in members:
            self._take(member)
        if members and ended is not None:
            self._meter.observe_between(self._now - ended)
        return Batch(tuple(members)) if members else WaitUntil(self._residency.next_gone(now))

    def evictions(self) -> tuple[SessionId, ...]:
        evicting, self._evicting = self._evicting, ()
        return evicting

    def prices(self) -> Prices:
        model = self.estimator.model
        num_filled = self._meter.typical.filled(model, self._settings.fill)
        plain = UNASSISTED if self.drafting is None else self.drafting.plain_round()
        return self._meter.prices(model, self._now, num_filled, self._limits.max_batch_requests, plain)

    def observe(
        self, batch: Batch, now: float, elapsed: float, num_committed: int, own: OwnDrafts = NONE_DRAFTED
    ) -> None:
        shape, self._fill, self._ended = BatchShape.of(batch), None, now
        self._admission.batch_ran()
        if self.drafting is None:
            self.estimator.observe(shape, elapsed)
        else:
            self.estimator.observe(shape, max(elapsed - self.drafting.time_of(batch), 0.0))
            self.drafting.observe(batch, num_committed, own, self._residency.sessions)
            self._choose_length(self.drafting)
        rounds = sum([member.num_verified is not None for member in batch.members])
        prefilled = sum(member.num_prefill_tokens for member in batch.members)
        self._meter.observe(shape, now, elapsed, rounds, num_committed, prefilled)

    def _choose_length(self, drafting: ServerDrafting) -> None:
        assert isinstance(self.estimator, DraftingEstimator), "whoever drafts estimates with the drafter"
        drafting.choose(
            self.estimator.target.predict, self._limits, self._demands.prefill_per_token, self._demands.fastest
        )
        self._residency.drafts = drafting.length > 0

    def _dispatch_time(self, now: float) -> float:
        """When to run what waits: `now`, or until when every slack allows to wait for more."""
        waiting, settings = self._waiting, self._settings
        if not waiting:
            return inf
        filled = waiting.num_tokens >= self._fill_shape().num_new
        if filled or waiting.late or settings.eager or self._entering:
            return now
        oldest = next(iter(waiting.requests.values()))
        return min(oldest.arrival + settings.max_wait, waiting.by_deadline.first_key - self._horizon())

    def _compose(self, now: float) -> Iterator[BatchMember]:
        """Members in the order of the rule."""
        batch = Assembly(self._limits, self.estimator.upper)
        price = self.prices().per_position if self._settings.trims else 0.0
        oldest = next(iter(self._waiting.requests.values()))
        if now - oldest.arrival >= self._settings.max_age:
            batch.add(oldest, _worthwhile(oldest, price), self._time_to_keep(oldest, now))
        self._add_urgent(batch, now, price)
        batch.protect(self._patience(batch, now))
        if self._settings.late_last:
            self._add_rest(batch, now, price)
            self._add_late(batch, now, price)
        else:
            self._add_late(batch, now, price)
            batch.protect(self._patience(batch, now))
            self._add_rest(batch, now, price)
        return iter(batch.members.values())

    def _add_urgent(self, batch: Assembly, now: float, price: float) -> None:
        urgent = self._waiting.by_deadline.drain(now + self._horizon())
        skipped = given_up = 0
        while not batch.full and skipped < self._settings.max_skipped and given_up < self._settings.max_given_up:
            request = next(self._not_in(batch, urgent), None)
            if request is None:
                return
            time_left, needed = request.deadline - now, self._time_needed(request)
            if needed > time_left:
                self._waiting.give_up(request.session_id)
                given_up += 1
            elif not batch.add(request, _worthwhile(request, price), time_left):
                batch.protect(time_left - needed)
                skipped += 1

    def _add_late(self, batch: Assembly, now: float, price: float) -> None:
        for request in self._not_in(batch, islice(self._waiting.late, 2 * self._settings.max_skipped)):
            # Its prompt may have gone faster than was thought.
            batch.add(request, _worthwhile(request, price), self._time_to_keep(request, now))

    def _add_rest(self, batch: Assembly, now: float, price: float) -> None:
        skipped = 0
        order = self._waiting.by_density if self._settings.by_density else self._waiting.by_deadline
        for request in self._not_in(batch, order.drain()):
            if not batch.add(request, _worthwhile(request, price), request.deadline - now):
                skipped += 1
            if batch.full or skipped == self._settings.max_skipped:
                return

    def _not_in(self, batch: Assembly, session_ids: Iterator[SessionId]) -> Iterator[VerificationRequest]:
        return (self._waiting.requests[one] for one in session_ids if one not in batch.members)

    def _make_room(self, members: list[BatchMember]) -> None:
        self._residency.make_room(members)
        self._evicting = self._take_evicted()
        for session_id in self._evicting:
            request = self._waiting.requests.get(session_id)
            if request is not None:
                self._waiting.remove(session_id)
                self._residency.keep_drafts(session_id, kept=request.drafted_here)
                self._entering[session_id] = self._limits.left_cached(request)
                self._entering.move_to_end(session_id, last=False)

    def _take_evicted(self) -> tuple[SessionId, ...]:
        """Who was evicted, the caches of a drafter that shares the memory included."""
        evicted = self._residency.take_evicted()
        if self.drafting is not None and self._limits.drafter_kv_share:
            for session_id in evicted:
                self.drafting.forget(session_id)
        return evicted

    def _take(self, member: BatchMember) -> None:
        """Remove a member's request from the queue, or note its progress."""
        request = member.request
        if member.num_verified is None:
            request = replace(request, num_cached_tokens=request.num_cached_tokens + member.num_prefill_tokens)
            self._waiting.update(request, self._density(request))
            return
        self._waiting.remove(request.session_id)
        self._demands.hear(request.session_id, self._now)
        if request.max_own_draft == 0:
            self._away.put(request.session_id, self._next_due(member), 0)

    def _next_due(self, member: BatchMember) -> float:
        """When the verdict after this one is probably due."""
        request = member.request
        demand = self._demands.sessions.get(request.session_id)
        speed = _tokens_per_s(demand) if demand is not None and member.num_verified is not None else 0.0
        if not speed:
            return inf
        committed = 1.0 + sum(request.survival[: member.num_verified])
        return request.deadline + committed / speed

    # Times

    def _fill_shape(self) -> BatchShape:
        """Of a batch that is as full as the load needs it."""
        if self._fill is None:
            needed = self._meter.work(self.estimator.model, self._now) / self._settings.target_utilisation
            self._fill = self._filled(min(max(needed, _LEAST_FILL), self._settings.fill))
        return self._fill

    def _filled(self, level: float) -> BatchShape:
        """Of a batch of such rounds as there were lately, filled to a level, within the limits."""
        typical = self._meter.typical
        return typical.batch(
            max(1, round(min(typical.filled(self.estimator.model, level), typical.most(self._limits))))
        )

    def _horizon(self) -> float:
        """Two filled batches: what cannot wait for so long is urgent."""
        return 2.0 * self._fill_time()

    def _fill_time(self) -> float:
        return max(self._least, self.estimator.upper(self._fill_shape()))

    def _patience(self, batch: Assembly, now: float) -> float:
        """How long a batch may take that nobody is in a hurry for: a filled one may follow it, for whoever is next."""
        fill = self._fill_time()
        again = min(map(self._next_due, batch.members.values()), default=inf)
        next_due = min(self._waiting.by_deadline.first_key, self._away.first_key, again)
        return max(fill, next_due - now - fill)

    def _time_to_keep(self, request: VerificationRequest, now: float) -> float:
        """How long a batch may take for a request's sake; inf: its deadline cannot be kept anyhow."""
        time_left = request.deadline - now
        return time_left if time_left >= self._time_needed(request) else inf

    def _time_needed(self, request: VerificationRequest) -> float:
        """What has to be left for its deadline to be kept: a batch of its own, or the least that batches take."""
        return max(self._least, self._time_alone(request))

    def _least_time(self) -> float:
        """Seconds of the batches that nobody's deadline may make smaller: those that whoever is late already would fill.

        Where there is more to do than can be done, somebody is always in a hurry. Served almost alone, he keeps his
        deadline, and the engine does a fraction of what it could: ever more are late.
        """
        num_late = len(self._waiting.late)
        if not num_late or not self._settings.late_last:
            return 0.0
        typical = self._meter.typical
        full = min(typical.filled(self.estimator.model, self._settings.fill), typical.most(self._limits))
        size = largest_batch(
            min(num_late, full),
            typical.patience(self._demands.fastest),
            lambda size: self.estimator.predict(typical.batch(size)),
        )
        return self.estimator.upper(typical.batch(size))

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
    worthwhile = 0
    for survival in request.survival:
        if survival < price:
            break
        worthwhile += 1
    return worthwhile


def _tokens_per_s(demand: SessionDemand) -> float:
    return demand.slo.tokens_per_s if demand.slo is not None else 0.0
