"""What the SLO-aware scheduler promises whatever comes, where it knows exactly how long batches take.

Sessions ask round after round on virtual time, under the settings of WISP and of WISP+. V(B) is a batch's time; a request
can be kept if the batches that answer it, with nobody else in them, are done by its deadline. While others are late already,
it has to have time for a batch of as many of them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf

import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.slo_aware import SLOAwareScheduler, SLOAwareSettings
from wisp.policy.systems import PLUS, PUBLISHED
from wisp.types import Batch, BatchMember, SessionDemand, SessionId, VerificationRequest

LIMITS = SchedulerLimits(max_batch_requests=8, max_batch_tokens=32, max_prefill_tokens=16)
SMALL_CACHE = replace(LIMITS, kv_capacity_tokens=160)
TOLERANCE = 1e-9
HARDWARE = (
    BatchTimeModel(fixed_s=1.0, per_token_s=0.0, per_token_above_ridge_s=0.25, ridge_tokens=8.0),
    BatchTimeModel(fixed_s=0.3, per_token_s=0.05, per_attended_s=2e-4, per_cached_s=5e-4, per_request_s=0.02),
)
"""With a ridge and nothing else, and without one."""


class Exact:
    """An estimator that knows the truth."""

    def __init__(self, model: BatchTimeModel) -> None:
        self.model = model
        self.predict = self.upper = model.predict

    def observe(self, shape: BatchShape, elapsed: float) -> None:
        """Nothing to learn."""


@dataclass(frozen=True)
class Plan:
    """What one session is going to ask for; times in seconds."""

    begins: float
    prompt: int
    rounds: int
    draft: int
    time_left: float
    """From a request's arrival to its deadline."""
    pause: float
    """From a verdict to the next request."""


PLANS = st.lists(
    st.builds(
        Plan,
        begins=st.sampled_from([0.0, 0.0, 0.5, 2.0, 7.0]),
        prompt=st.sampled_from([1, 1, 6, 41]),
        rounds=st.integers(1, 4),
        draft=st.integers(0, 8),
        time_left=st.sampled_from([0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 5.5, 9.0, 30.0, inf]),
        pause=st.sampled_from([0.0, 0.1, 1.0]),
    ),
    min_size=1,
    max_size=14,
)
SETTINGS = st.sampled_from([PUBLISHED, PLUS, SLOAwareSettings()])


@dataclass
class Fleet:
    """Sessions by plan, with a scheduler and its engine; `check` sees every batch before it runs."""

    plans: list[Plan]
    settings: SLOAwareSettings
    hardware: BatchTimeModel
    check: Callable[[Fleet, Batch], None]
    limits: SchedulerLimits = LIMITS
    now: float = field(default=0.0, init=False)
    answered: list[SessionId] = field(default_factory=list, init=False)
    """One for each verdict, in their order."""
    urgent: list[VerificationRequest] = field(default_factory=list, init=False)
    """Those that could not wait for two filled batches before the last one was dispatched, in the scheduler's order."""

    def __post_init__(self) -> None:
        self.scheduler = SLOAwareScheduler(self.limits, Exact(self.hardware), self.settings)
        self._history = {str(index): plan.prompt + 1 for index, plan in enumerate(self.plans)}
        self._cached = dict.fromkeys(self._history, 0)
        self._arrivals: list[tuple[float, int]] = []
        for name, plan in zip(self._history, self.plans, strict=True):
            self.scheduler.admit(SessionDemand(name, plan.prompt + 1, 64), 0.0)
            heappush(self._arrivals, (plan.begins, int(name)))

    def run(self) -> Fleet:
        """Until nothing happens any more."""
        while True:
            while self._arrivals and self._arrivals[0][0] <= self.now:
                self.scheduler.add(self._request(*heappop(self._arrivals)))
            self.urgent = self._urgent()
            decision = self.scheduler.schedule(self.now)
            evicted = self.scheduler.evictions()
            self._cached.update(dict.fromkeys(evicted, 0))
            if isinstance(decision, Batch):
                self.check(self, decision)
                self._run(decision)
            elif not evicted:
                self.now = min([decision.time, *(time for time, _ in self._arrivals[:1])])
                if self.now == inf:
                    return self

    def _request(self, arrival: float, number: int) -> VerificationRequest:
        plan, name = self.plans[number], str(number)
        survival = tuple(0.8 ** (index + 1) for index in range(plan.draft))
        deadline = arrival + plan.time_left
        return VerificationRequest(
            name, 1, self._history[name], self._cached[name], plan.draft, arrival, survival, deadline
        )

    def _urgent(self) -> list[VerificationRequest]:
        self.scheduler._least = self.scheduler._least_time()
        waiting, horizon = self.scheduler._waiting, self.now + self.scheduler._horizon()
        entries = sorted(waiting.by_deadline._current.values())
        return [waiting.requests[name] for latest_start, _, name in entries if latest_start <= horizon]

    def _run(self, batch: Batch) -> None:
        elapsed = self.time(batch.members)
        self.now += elapsed
        for member in batch.members:
            name = member.request.session_id
            self._cached[name] = member.request.num_cached_tokens + member.num_prefill_tokens
            if member.num_verified is not None:
                self._history[name] += 1 + member.num_verified // 2
                self._cached[name] = self._history[name] - 1
            self.scheduler.cached(name, self._cached[name], self.now)
            if member.completes:
                self._answer(name)
        self.scheduler.observe(batch, self.now, elapsed, len(batch.members))

    def _answer(self, name: SessionId) -> None:
        self.answered.append(name)
        plan = self.plans[int(name)]
        if self.answered.count(name) == plan.rounds:
            self.scheduler.release(name)
        else:
            heappush(self._arrivals, (self.now + plan.pause, int(name)))

    # What a batch does to requests

    def time(self, members: Iterable[BatchMember]) -> float:
        """V of a batch of these."""
        return self.hardware.predict(BatchShape.of(Batch(tuple(members))))

    def left(self, request: VerificationRequest) -> float:
        """Seconds to its deadline."""
        return request.deadline - self.now

    def spare(self, request: VerificationRequest) -> float:
        """Seconds that it can wait and still be kept; negative: it cannot be kept."""
        chunk = self.limits.max_prefill_tokens
        prefill, cached, alone = request.num_prefill_tokens, request.num_cached_tokens, 0.0
        while prefill > chunk:
            alone += self.hardware.predict(BatchShape().plus(chunk, cached))
            prefill, cached = prefill - chunk, cached + chunk
        alone += self.hardware.predict(BatchShape().plus(prefill + 1, cached))
        return self.left(request) - max(alone, self.scheduler._least)

    def first_by_age(self, batch: Batch) -> list[BatchMember]:
        """The member that went first since it had waited too long, if there is one."""
        oldest = min(batch.members, key=lambda member: member.request.arrival)
        return [oldest] if self.now - oldest.request.arrival >= self.settings.max_age else []

    def left_out(self, batch: Batch) -> Iterator[tuple[VerificationRequest, list[BatchMember]]]:
        """Urgent requests that could be kept and that a batch with room left out, with the members that came first."""
        if len(batch.members) == self.limits.max_batch_requests or batch.num_new_tokens == self.limits.max_batch_tokens:
            return
        members = {member.request.session_id: member for member in batch.members}
        before = self.first_by_age(batch)
        for request in self.urgent:
            member = members.get(request.session_id)
            if member is None and self.spare(request) >= 0.0:
                yield request, before
            elif member is not None and member not in before:
                before = [*before, member]


def serve(
    plans: list[Plan],
    settings: SLOAwareSettings,
    check: Callable[[Fleet, Batch], None],
    limits: SchedulerLimits = LIMITS,
) -> None:
    """On both machines."""
    for hardware in HARDWARE:
        Fleet(plans, settings, hardware, check, limits).run()


def nothing(fleet: Fleet, batch: Batch) -> None:
    """No check."""


@given(PLANS, SETTINGS)
def test_everybody_is_served_to_the_end(plans: list[Plan], settings: SLOAwareSettings) -> None:
    """Hopeless, poor and patient ones included, in a cache that is too small for all at once."""
    for hardware in HARDWARE:
        fleet = Fleet(plans, settings, hardware, nothing, SMALL_CACHE).run()
        assert {name: fleet.answered.count(name) for name in fleet.answered} == {
            str(index): plan.rounds for index, plan in enumerate(plans)
        }


@given(PLANS, SETTINGS)
def test_equals_are_served_in_the_order_of_their_arrival(plans: list[Plan], settings: SLOAwareSettings) -> None:
    """In their first rounds, where no prompt is computed: a later one's may be cut less, and be done earlier."""
    for hardware in HARDWARE:
        answered = Fleet(plans, settings, hardware, nothing).run().answered
        for plan in {plan for plan in plans if plan.prompt == 1}:
            equals = [answered.index(str(index)) for index, one in enumerate(plans) if one == plan]
            assert equals == sorted(equals)


@given(PLANS, SETTINGS)
def test_batches_and_cache_keep_within_the_limits(plans: list[Plan], settings: SLOAwareSettings) -> None:
    """Requests, positions, positions of prompts, and tokens in the cache."""

    def check(fleet: Fleet, batch: Batch) -> None:
        assert 0 < len(batch.members) <= LIMITS.max_batch_requests
        assert batch.num_new_tokens <= LIMITS.max_batch_tokens
        assert sum(member.num_prefill_tokens for member in batch.members) <= LIMITS.max_prefill_tokens
        assert fleet.scheduler._residency._total <= SMALL_CACHE.kv_capacity_tokens

    serve(plans, settings, check, SMALL_CACHE)


@given(PLANS, SETTINGS)
def test_nobody_is_made_to_miss_by_other_members(plans: list[Plan], settings: SLOAwareSettings) -> None:
    """Who can be kept when a batch is dispatched that answers him is in time."""

    def check(fleet: Fleet, batch: Batch) -> None:
        time = fleet.time(batch.members)
        for member in batch.members:
            if member.completes and fleet.spare(member.request) >= TOLERANCE:
                assert time <= fleet.left(member.request) + TOLERANCE, member

    serve(plans, settings, check)


@given(PLANS, SETTINGS)
def test_nobody_who_is_left_out_is_made_to_miss_by_who_comes_later(
    plans: list[Plan], settings: SLOAwareSettings
) -> None:
    """An urgent request that can be kept can still be after the batch, unless those before it take too long already."""

    def check(fleet: Fleet, batch: Batch) -> None:
        for request, before in fleet.left_out(batch):
            spare = fleet.spare(request)
            if fleet.time(before) <= spare:
                assert fleet.time(batch.members) <= spare + TOLERANCE, request

    serve(plans, settings, check)


@hypothesis_settings(phases=(Phase.generate,))
@given(PLANS, SETTINGS)
def test_nobody_is_left_out_needlessly(plans: list[Plan], settings: SLOAwareSettings) -> None:
    """An urgent request that can be kept, but not after the batch, would not fit it: somebody before it would miss."""

    def check(fleet: Fleet, batch: Batch) -> None:
        time = fleet.time(batch.members)
        least = inf
        for request, before in fleet.left_out(batch):
            if fleet.spare(request) < time - TOLERANCE and _has_room(before, request):
                kept = (fleet.left(one.request) for one in before if fleet.spare(one.request) >= 0.0)
                together = fleet.time([*before, BatchMember(request, request.num_prefill_tokens, 0)])
                assert together > min(fleet.left(request), least, *kept) - TOLERANCE, request
            least = min(least, fleet.spare(request))

    serve(plans, settings, check)


def _has_room(members: list[BatchMember], request: VerificationRequest) -> bool:
    """Whether all of a request but its draft fits beside these within the limits."""
    prefill = request.num_prefill_tokens + sum(member.num_prefill_tokens for member in members)
    tokens = request.num_prefill_tokens + 1 + sum(member.num_new_tokens for member in members)
    return prefill <= LIMITS.max_prefill_tokens and tokens <= LIMITS.max_batch_tokens


@pytest.mark.parametrize("settings", [PUBLISHED, PLUS, SLOAwareSettings()])
def test_two_urgent_requests_share_a_batch_on_an_idle_engine(settings: SLOAwareSettings) -> None:
    """However few positions its batches had lately."""
    what = SLOAwareScheduler(LIMITS, Exact(HARDWARE[1]), settings)
    what.add(VerificationRequest("before", 1, 10, 9, 0, 0.0, deadline=0.5))
    alone = what.schedule(0.0)
    assert isinstance(alone, Batch)
    what.observe(alone, 0.4, 0.4, 1)
    for name in ("a", "b"):
        what.add(VerificationRequest(name, 1, 10, 9, 0, 1.0, deadline=1.7))
    batch = what.schedule(1.0)
    assert isinstance(batch, Batch)
    assert [member.request.session_id for member in batch.members] == ["a", "b"]
