"""The SLO-aware scheduler: whom it serves, when, and how much of each; test_slo_aware_promises.py: what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

import pytest

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.estimator import EstimatorSettings, VerificationTimeEstimator
from wisp.policy.residency import GONE_AFTER
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.slo_aware import SLOAwareScheduler, SLOAwareSettings
from wisp.types import SLO, Admitted, Batch, Prices, RetryAfter, SessionDemand, VerificationRequest, WaitUntil

MODEL = BatchTimeModel(fixed_s=1.0, per_token_s=0.0, per_token_above_ridge_s=0.25, ridge_tokens=8.0)
"""Eight positions for a second, every further one a quarter of a second; filled at 12 positions, in 2 seconds."""
EAGER = SLOAwareSettings(eager=True, max_age=inf)
"""Waits for nobody."""
LIMITS = SchedulerLimits(max_sessions=64, max_batch_requests=16, max_batch_tokens=64, max_prefill_tokens=16)


def scheduler(
    settings: SLOAwareSettings = EAGER, limits: SchedulerLimits = LIMITS, model: BatchTimeModel = MODEL
) -> SLOAwareScheduler:
    estimator = VerificationTimeEstimator(model, EstimatorSettings(initial_safety=0.0))
    return SLOAwareScheduler(limits, estimator, settings)


def request(
    name: str, deadline: float = inf, draft: int = 3, prefill: int = 0, arrival: float = 0.0, **fields: object
) -> VerificationRequest:
    made = VerificationRequest(name, 1, 100 + prefill, 99, draft, arrival, deadline=deadline)
    return replace(made, **fields)  # type: ignore[arg-type]


def names(decision: Batch | WaitUntil) -> list[str]:
    assert isinstance(decision, Batch)
    return [member.request.session_id for member in decision.members]


def run(what: SLOAwareScheduler, decision: Batch | WaitUntil, now: float, committed: int = 8) -> float:
    """Let a batch take the time it was estimated at; returns when it is done."""
    assert isinstance(decision, Batch)
    elapsed = what.estimator.predict(BatchShape.of(decision))
    what.observe(decision, now + elapsed, elapsed, committed)
    return now + elapsed


# Order


def test_urgent_requests_go_first_by_deadline() -> None:
    """Whatever their arrival and their worth."""
    what = scheduler()
    for name, deadline in (("rich", inf), ("late", 3.0), ("later", 3.5)):
        what.add(request(name, deadline, draft=7 if name == "rich" else 3, survival=(0.9,) * 3))
    assert names(what.schedule(0.0)) == ["late", "later", "rich"]


def test_the_others_go_by_density() -> None:
    """Where that is asked for: expected tokens per second of engine time, a prompt's prefill included."""
    what = scheduler(replace(EAGER, by_density=True), replace(LIMITS, max_batch_requests=2))
    what.add(request("prompt", prefill=15, survival=(0.9, 0.9, 0.9)))
    what.add(request("poor", survival=(0.1, 0.0, 0.0)))
    what.add(request("rich", survival=(0.9, 0.8, 0.7)))
    assert names(what.schedule(0.0)) == ["rich", "poor"]
    assert names(what.schedule(0.0)) == ["prompt"]


def test_nobody_joins_an_urgent_batch_who_would_make_it_late() -> None:
    """The second would take the batch past the first one's deadline, without its draft too; it waits, and is in time."""
    what = scheduler()
    what.add(request("a", deadline=1.0, draft=7))
    what.add(request("b", deadline=3.5, draft=7))
    assert names(what.schedule(0.0)) == ["a"]
    assert names(what.schedule(1.0)) == ["b"]


def test_an_urgent_one_that_is_left_out_is_not_delayed_by_others() -> None:
    """What is not urgent may join only if who is left out can still be in time."""
    what = scheduler()
    what.add(request("a", deadline=1.25, draft=8))
    what.add(request("b", deadline=2.25, draft=8))
    what.add(request("idle", draft=0))
    assert names(what.schedule(0.0)) == ["a"]
    assert names(what.schedule(1.25)) == ["b", "idle"]


def test_what_cannot_be_in_time_any_more_makes_room() -> None:
    """A hopeless request is served, but costs no one his deadline."""
    what = scheduler()
    what.add(request("hopeless", deadline=0.5, draft=7))
    what.add(request("urgent", deadline=1.0, draft=7))
    assert names(what.schedule(0.0)) == ["urgent"]
    assert names(what.schedule(1.0)) == ["hopeless"]


def test_whoever_is_late_comes_last() -> None:
    """Nobody else becomes late for his sake; under WISP as published he comes before those who are not urgent."""

    def served(settings: SLOAwareSettings) -> list[str]:
        what = scheduler(settings, replace(LIMITS, max_batch_requests=2))
        what.add(request("hopeless", deadline=0.5, draft=1))
        what.add(request("patient", deadline=90.0, draft=1))
        what.add(request("more patient", deadline=91.0, draft=1))
        return names(what.schedule(0.0))

    assert served(EAGER) == ["patient", "more patient"]
    assert served(replace(EAGER, late_last=False)) == ["hopeless", "patient"]


def test_nobodys_deadline_makes_a_batch_smaller_than_the_late_would_fill() -> None:
    """Who could only be kept by a batch of his own joins them: else there is always one, and ever more are late."""

    def served(settings: SLOAwareSettings) -> list[str]:
        what = scheduler(settings, model=BatchTimeModel(fixed_s=1.0, per_token_s=0.05))
        what.add(request("pressing", deadline=1.42, draft=7))
        for index in range(10):
            what.add(request(f"late {index}", deadline=0.5))
        assert names(what.schedule(0.0)) == ["pressing"], "and the others are found late"
        what.add(request("pressing again", deadline=3.42, draft=7, arrival=2.0))
        return names(what.schedule(2.0))

    assert served(replace(EAGER, late_last=False)) == ["pressing again"]
    assert served(EAGER) == [*(f"late {index}" for index in range(10)), "pressing again"]


def test_the_oldest_goes_first_in_the_end() -> None:
    """Ageing: under a stream of urgent requests everybody is served."""
    what = scheduler(replace(EAGER, max_age=5.0))
    what.add(request("poor", draft=8))
    now, served = 0.0, []
    while "poor" not in served and now < 20.0:
        what.add(request(f"urgent {now}", deadline=now + 1.0, draft=7, arrival=now))
        decision = what.schedule(now)
        served += names(decision)
        now = run(what, decision, now)
    assert 5.0 <= now < 9.0


# Time


def test_an_underfilled_batch_waits_while_every_slack_allows() -> None:
    """Until a request becomes urgent, has waited long enough, or the level is reached that the load needs."""
    what = lazy()
    assert what.schedule(100.0) == WaitUntil()
    what.add(request("a", draft=0, arrival=100.0))
    assert what.schedule(100.0) == WaitUntil(103.0)
    horizon = what._horizon()
    what.add(request("b", deadline=102.0 + horizon + 0.25, draft=0, arrival=100.0))
    assert what.schedule(100.0) == WaitUntil(pytest.approx(102.0))
    for index in range(12):
        what.add(request(str(index), arrival=101.0))
    assert names(what.schedule(101.0))[:2] == ["b", "a"]


def test_no_batch_waits_for_company_while_a_session_waits_for_the_cache() -> None:
    """Whoever is in the cache is to be done soon."""
    what = lazy(replace(LIMITS, kv_capacity_tokens=250))
    what.cached("a", 99, 100.0)
    what.add(request("a", draft=0, arrival=100.0))
    assert isinstance(what.schedule(100.0), WaitUntil)
    what.add(request("b", draft=0, arrival=100.0, num_history_tokens=200, num_cached_tokens=0))
    assert names(what.schedule(100.0)) == ["a"]


def lazy(limits: SchedulerLimits = LIMITS) -> SLOAwareScheduler:
    """A scheduler whose engine has computed large batches for a hundred seconds."""
    what = scheduler(SLOAwareSettings(max_wait=3.0, max_age=inf), limits, replace(MODEL, fixed_s=2.0))
    now = 0.0
    while now < 100.0:
        for index in range(8):
            what.add(request(f"busy {index}", draft=3, arrival=now - 99.0))
        now = run(what, what.schedule(now), now)
    for index in range(8):
        what.release(f"busy {index}")
    return what


def test_the_times_it_names_are_kept() -> None:
    """Asked at the time that it named, it dispatches."""
    what = lazy()
    what.add(request("a", draft=0, arrival=100.0))
    decision = what.schedule(100.0)
    assert isinstance(decision, WaitUntil)
    assert names(what.schedule(decision.time)) == ["a"]


def test_an_idle_engine_waits_for_nobody() -> None:
    """Saving its time would help no one."""
    what = scheduler(SLOAwareSettings())
    what.add(request("a"))
    assert names(what.schedule(0.0)) == ["a"]


# How much


def test_prompts_are_prefilled_in_chunks_inside_batches() -> None:
    """And cut smaller where a deadline is near; the request keeps its place."""
    what = scheduler()
    what.add(request("prompt", prefill=30))
    what.add(request("urgent", deadline=1.0, draft=3))
    first = what.schedule(0.0)
    assert isinstance(first, Batch)
    assert [(member.num_prefill_tokens, member.num_verified) for member in first.members] == [(0, 3), (4, None)]
    second, third = what.schedule(10.0), what.schedule(20.0)
    assert isinstance(second, Batch)
    assert isinstance(third, Batch)
    assert [(member.num_prefill_tokens, member.num_verified) for member in second.members] == [(16, None)]
    assert [(member.num_prefill_tokens, member.num_verified) for member in third.members] == [(10, 3)]


def test_tails_that_are_not_worth_their_price_are_cut() -> None:
    """Once the engine is busy; before, every position is free."""
    survival = (0.9, 0.5, 0.05)
    what = scheduler()
    what.add(request("a", survival=survival))
    decision = what.schedule(0.0)
    assert isinstance(decision, Batch)
    assert [member.num_verified for member in decision.members] == [3]
    assert what.prices() == Prices()
    busy = scheduler(EAGER, model=replace(MODEL, per_request_s=0.1))
    now = 0.0
    while now < 60.0:
        for index in range(4):
            busy.add(request(f"busy {index}", arrival=now))
        now = run(busy, busy.schedule(now), now, committed=5)
    assert 0.5 < busy.prices().per_position < 0.9
    busy.add(request("a", survival=survival))
    decision = busy.schedule(now)
    assert isinstance(decision, Batch)
    assert [member.num_verified for member in decision.members] == [1]


# Who


def test_admission_counts_sessions() -> None:
    """As first come, first served does; one that is known may always come again."""
    what = scheduler(limits=replace(LIMITS, max_sessions=2))
    demands = [SessionDemand(name, 1, 1) for name in "abc"]
    assert [what.admit(demand, 0.0) for demand in demands[:2]] == [Admitted()] * 2
    refused = what.admit(demands[2], 0.0)
    assert isinstance(refused, RetryAfter)
    assert "all 2 sessions are taken" in refused.reason
    assert what.admit(demands[0], 0.0) == Admitted()
    what.release("a")
    assert what.admit(demands[2], 0.0) == Admitted()


def test_admission_keeps_the_promises_made() -> None:
    """No more sessions than can be served at their speeds, by the estimate; the first one always starts."""
    what = scheduler()
    fast = SLO("fast", 0.5, 1.0)
    answers = [what.admit(SessionDemand(str(index), 1, 1, fast), 0.0) for index in range(9)]
    assert answers[:2] == [Admitted()] * 2
    assert isinstance(answers[-1], RetryAfter)
    assert "take all of its time" in answers[-1].reason
    assert scheduler().admit(SessionDemand("a", 1, 1, replace(fast, tokens_per_s=99.0)), 0.0) == Admitted()


def test_admission_counts_on_batches_as_full_as_the_fastest_can_wait_for() -> None:
    """However little batches are filled while there is time."""
    slo = SLO("slow", 0.5, 10.0)

    def num_admitted(fill: float) -> int:
        what = scheduler(SLOAwareSettings(fill=fill), model=BatchTimeModel(fixed_s=1.0, per_token_s=0.05))
        demands = (SessionDemand(str(index), 1, 1, slo) for index in range(LIMITS.max_sessions))
        return sum(what.admit(demand, 0.0) == Admitted() for demand in demands)

    assert 1 < num_admitted(0.1) == num_admitted(0.9) < LIMITS.max_sessions


def test_admission_counts_what_the_server_takes_between_batches() -> None:
    """As long as there was something to do; on an idle server nothing passes between them."""

    def num_admitted(between: float, idle: bool) -> int:
        what = scheduler(model=BatchTimeModel(fixed_s=0.1, per_request_s=0.1))
        now = 0.0
        for index in range(20):
            if idle:
                assert isinstance(what.schedule(now), WaitUntil)
            what.add(request(str(index), arrival=now))
            now = run(what, what.schedule(now), now, committed=2) + between
        slo = SLO("fast", 1.0, 10.0)
        return sum(what.admit(SessionDemand(f"new {index}", 1, 9, slo), now) == Admitted() for index in range(64))

    assert num_admitted(0.0, idle=False) == num_admitted(0.2, idle=True) > num_admitted(0.2, idle=False)


def test_sessions_whose_devices_are_gone_hold_no_place() -> None:
    """They demand nothing once they were not heard of for a while; one that waits here is not gone, however long."""
    slo = SLO("fast", 0.5, 1.0)
    what = scheduler()
    names = iter(f"session {i}" for i in range(1000))
    while what.admit(SessionDemand(next(names), 1, 100, slo), 0.0) == Admitted():
        pass
    what.add(request("session 0", arrival=GONE_AFTER))
    later = 2.1 * GONE_AFTER
    assert isinstance(what.admit(SessionDemand("early", 1, 100, slo), 0.9 * GONE_AFTER), RetryAfter)
    assert what.admit(SessionDemand("late", 1, 100, slo), later) == Admitted()
    assert what._demands.present("session 0", later, what._admission.waits)
    assert not what._demands.present("session 1", later, what._admission.waits)


def test_admission_asks_how_long_the_cache_stays_full() -> None:
    """A session that would find room too late for its first token is refused; what clients allow at most is no matter."""
    slo = SLO("patient", 1e-6, 10.0)
    what = scheduler(limits=replace(LIMITS, kv_capacity_tokens=1000))
    assert what.admit(SessionDemand("a", 900, 1 << 20, slo), 0.0) == Admitted()
    what.add(request("a", num_history_tokens=900, num_cached_tokens=0))
    assert what.admit(SessionDemand("b", 60, 1 << 20, slo), 0.0) == Admitted()
    assert what.admit(SessionDemand("c", 600, 1, slo), 0.0) == Admitted(), "900 entered in the last 10 s"
    refused = what.admit(SessionDemand("d", 600, 1, slo), 0.0)
    assert isinstance(refused, RetryAfter)
    assert "its KV cache is full" in refused.reason
    assert what.admit(SessionDemand("e", 600, 1), 0.0) == Admitted(), "it has no deadline"


def test_admission_asks_how_long_prompts_wait() -> None:
    """A session that would be read too late for its first token is refused; one with more patience is not."""
    what = scheduler()
    now = 0.0
    for index in range(8):
        what.add(request(str(index), prefill=16, arrival=now))
        now = run(what, what.schedule(now), now, committed=1)
    for index in range(4):
        assert what.admit(SessionDemand(f"before {index}", 100, 10), now) == Admitted()
        what.add(request(f"before {index}", num_history_tokens=100, num_cached_tokens=0, arrival=now))
    refused = what.admit(SessionDemand("a", 100, 10, SLO("hasty", 1e-6, 20.0)), now)
    assert isinstance(refused, RetryAfter)
    assert "wait for their prompts to be read" in refused.reason
    assert what.admit(SessionDemand("a", 100, 10, SLO("patient", 1e-6, 1000.0)), now) == Admitted()


def test_requests_wait_for_room_in_the_cache_and_nobody_overtakes() -> None:
    """Those in it go on; whoever is evicted is the first to enter again, and is prefilled anew."""
    what = scheduler(limits=replace(LIMITS, kv_capacity_tokens=250))
    for name in ("a", "b"):
        what.cached(name, 120, 0.0)
        what.add(request(name, 90.0, num_history_tokens=121, num_cached_tokens=120, draft=6))
    what.add(request("c", num_history_tokens=9, num_cached_tokens=0))
    assert names(what.schedule(0.0)) == ["a"]
    assert what.evictions() == ("b",)
    assert what.evictions() == ()
    what.cached("a", 127, 1.0)
    assert isinstance(what.schedule(1.0), WaitUntil)
    what.release("a")
    decision = what.schedule(2.0)
    assert isinstance(decision, Batch)
    assert names(decision)[0] == "b"
    assert decision.members[0].num_prefill_tokens == LIMITS.max_prefill_tokens


def test_a_cancelled_request_is_not_served() -> None:
    """Nor is one of a session that ended."""
    what = scheduler()
    what.add(request("a"))
    what.add(request("b"))
    what.cancel("a")
    what.release("b")
    assert what.schedule(0.0) == WaitUntil()


# Cost


@pytest.mark.parametrize("left", [1.0, 3.0, 1000.0, inf])
def test_a_batch_costs_what_it_takes_not_what_waits(left: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates asked for: no more with a thousand waiting than with a hundred."""
    counts = {}
    for number in (100, 1000):
        what = scheduler()
        for index in range(number):
            what.add(request(str(index), left, survival=(0.5, 0.4, index / number)))
        asked = 0
        predict = BatchTimeModel.predict

        def count(self: BatchTimeModel, shape: BatchShape, predict: Callable[..., float] = predict) -> float:
            nonlocal asked
            asked += 1
            return predict(self, shape)

        with monkeypatch.context() as patched:
            patched.setattr(BatchTimeModel, "predict", count)
            what.schedule(0.0)
        counts[number] = asked
    assert counts[1000] <= 2 * counts[100]
