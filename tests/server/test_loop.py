"""The verification loop in virtual time: what is asked, computed and delivered, and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.fakes import FakeTarget
from tests.server.device import PROMPT, draft, generation
from tests.virtual_time import VirtualEngineTime, run
from wisp.engines.base import StepMember, StepOutcome
from wisp.errors import EngineError, InvalidRequest, WispError
from wisp.policy.residency import GONE_AFTER
from wisp.policy.scheduler import FCFSScheduler, Scheduler, SchedulerLimits
from wisp.server.loop import BatchRecord, EngineThread, Round, VerificationLoop
from wisp.types import Batch, GenerationRequest, Hints, Prices, SessionDemand, WaitUntil

STEP_TIME = 2.0


class Logged(FCFSScheduler):
    """FCFS that remembers when it was asked and what it was told."""

    def __init__(self, limits: SchedulerLimits | None = None) -> None:
        super().__init__(limits or SchedulerLimits())
        self.asked: list[float] = []
        self.told: list[tuple[str, int]] = []

    def schedule(self, now: float) -> Batch | WaitUntil:
        self.asked.append(now)
        return super().schedule(now)

    def cached(self, session_id: str, num_cached_tokens: int, now: float) -> None:
        self.told.append((session_id, num_cached_tokens))
        super().cached(session_id, num_cached_tokens, now)

    def prices(self) -> Prices:
        return Prices(0.5, 0.25)


@dataclass
class Bench:
    """A loop on a fake target whose steps take STEP_TIME."""

    target: FakeTarget
    scheduler: Any
    loop: VerificationLoop
    records: list[BatchRecord]
    delivered: list[tuple[float, str, StepOutcome | EngineError, Hints]] = field(default_factory=list)

    async def open(self, session_id: str, request: GenerationRequest | None = None) -> int | WispError:
        request = request or generation()
        self.scheduler.admit(SessionDemand(session_id, len(request.tokens), 10), _now())
        answer: asyncio.Future[int | WispError] = asyncio.get_running_loop().create_future()
        self.loop.open(session_id, "me", request, answer.set_result)
        return await answer

    def submit(self, session_id: str, num_right: int = 0, **fields: Any) -> None:
        tokens = draft(1, self.target.history(session_id), num_right).tokens if num_right else ()
        self.loop.submit(
            Round(
                session_id,
                1,
                tokens,
                lambda outcome, hints: self.delivered.append((_now(), session_id, outcome, hints)),
                _now(),
                **fields,
            )
        )

    @property
    def outcomes(self) -> list[tuple[float, str]]:
        return [(at, session_id) for at, session_id, _, _ in self.delivered]


def _now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def bench(scheduler: Scheduler | None = None, step_time: float = STEP_TIME):  # type: ignore[no-untyped-def]
    """A running loop."""
    engine_time = VirtualEngineTime()
    target = FakeTarget(on_step=lambda _: engine_time.sleep(step_time))
    scheduler = scheduler or Logged()
    records: list[BatchRecord] = []
    loop = VerificationLoop(target, scheduler, _now, engine_time, records.append)
    task = asyncio.create_task(loop.run())
    try:
        yield Bench(target, scheduler, loop, records)
    finally:
        loop.stop()
        await task


def test_what_waits_is_verified_together() -> None:
    """Three requests of one instant: one step, one delivery each, with the times they took."""

    async def main() -> None:
        async with bench() as it:
            for name in "abc":
                await it.open(name)
            for name in "abc":
                it.submit(name, num_right=2)
            await asyncio.sleep(STEP_TIME + 1)
            assert it.outcomes == [(STEP_TIME, "a"), (STEP_TIME, "b"), (STEP_TIME, "c")]
            outcome, hints = it.delivered[0][2:]
            assert outcome.num_accepted == 2
            assert hints == Hints(0.0, STEP_TIME, Prices(0.5, 0.25))
            assert [len(record.batch.members) for record in it.records] == [3]

    run(main())


def test_what_arrives_during_a_step_waits_for_the_next() -> None:
    """The wait is its queue time; the scheduler is asked on arrival and when the engine is free."""

    async def main() -> None:
        async with bench() as it:
            await it.open("a")
            await it.open("b")
            it.submit("a")
            await asyncio.sleep(0.5)
            it.submit("b")
            await asyncio.sleep(2 * STEP_TIME)
            assert it.outcomes == [(STEP_TIME, "a"), (2 * STEP_TIME, "b")]
            assert it.delivered[1][3].queue_time == STEP_TIME - 0.5
            assert set(it.scheduler.asked) == {0.0, STEP_TIME, 2 * STEP_TIME}

    run(main())


def test_a_scheduler_that_waits_is_asked_again_at_its_time_and_on_arrival() -> None:
    """WaitUntil(t) is kept to the instant."""

    class Lazy(Logged):
        def schedule(self, now: float) -> Batch | WaitUntil:
            self.asked.append(now)
            return WaitUntil(10.0) if now < 10.0 and self._waiting else FCFSScheduler.schedule(self, now)

    async def main() -> None:
        async with bench(Lazy()) as it:
            await it.open("a")
            it.submit("a")
            await asyncio.sleep(3)
            await it.open("b")
            it.submit("b")
            await asyncio.sleep(20)
            assert it.outcomes == [(10 + STEP_TIME, "a"), (10 + STEP_TIME, "b")]
            assert set(it.scheduler.asked) == {0.0, 3.0, 10.0, 10.0 + STEP_TIME}

    run(main())


def test_a_batch_tells_how_long_the_loop_slept_before_it() -> None:
    """For want of requests; not while the engine computes or the next request is there already."""

    async def main() -> None:
        async with bench() as it:
            for name in "abc":
                await it.open(name)
            await asyncio.sleep(3)
            it.submit("a")
            await asyncio.sleep(1)
            it.submit("b")
            await asyncio.sleep(2 * STEP_TIME)
            it.submit("c")
            await asyncio.sleep(2 * STEP_TIME)
            assert [record.waited for record in it.records] == [3.0, 0.0, 1.0]

    run(main())


def test_long_prompts_are_computed_in_chunks_and_booked_after_each() -> None:
    """The scheduler hears what is cached after the open and after every batch."""

    async def main() -> None:
        async with bench(Logged(SchedulerLimits(max_prefill_tokens=4))) as it:
            await it.open("a", generation(PROMPT[:10]))
            it.submit("a")
            await asyncio.sleep(10 * STEP_TIME)
            assert it.scheduler.told == [("a", 0), ("a", 4), ("a", 8), ("a", 10)]
            assert it.outcomes == [(3 * STEP_TIME, "a")]
            assert it.delivered[0][3].queue_time == 2 * STEP_TIME

    run(main())


def test_a_round_may_take_the_place_of_one_whose_prompt_is_being_computed() -> None:
    """What the running chunk adds to the cache counts for it."""

    async def main() -> None:
        async with bench(Logged(SchedulerLimits(max_prefill_tokens=4))) as it:
            await it.open("a", generation(PROMPT[:10]))
            it.submit("a")
            await asyncio.sleep(1)
            assert it.loop.cancel("a")
            it.submit("a")
            await asyncio.sleep(10 * STEP_TIME)
            assert it.outcomes == [(3 * STEP_TIME, "a")]
            assert [step[0].num_prefill_tokens for step in it.target.steps] == [4, 4, 1]

    run(main())


def test_evictions_come_before_the_batch_that_needs_the_room() -> None:
    """And the evicted session's next request starts from an empty cache."""

    async def main() -> None:
        async with bench(Logged(SchedulerLimits(kv_capacity_tokens=24))) as it:
            for name in "ab":
                await it.open(name, generation(bytes(name * 16, "ascii")))
                it.submit(name)
                await asyncio.sleep(GONE_AFTER + 2 * STEP_TIME)
            assert it.target.num_cached_tokens("a") == 0
            it.submit("a")
            await asyncio.sleep(GONE_AFTER + 2 * STEP_TIME)
            assert it.target.steps[-1] == (StepMember("a", 16, ()),)
            assert it.target.num_cached_tokens("b") == 0
            assert [name for _, name in it.outcomes] == ["a", "b", "a"]

    run(main())


def test_evictions_without_a_batch_are_carried_out_too() -> None:
    """A scheduler may make room first and wait then."""

    class Evicting(Logged):
        def __init__(self) -> None:
            super().__init__()
            self.victims: tuple[str, ...] = ()

        def evictions(self) -> tuple[str, ...]:
            victims, self.victims = self.victims, ()
            return victims

    async def main() -> None:
        scheduler = Evicting()
        async with bench(scheduler) as it:
            await it.open("a")
            it.submit("a")
            await asyncio.sleep(2 * STEP_TIME)
            assert it.target.num_cached_tokens("a") > 0
            scheduler.victims = ("a", "never opened")
            await it.open("b")
            await asyncio.sleep(1)
            assert it.target.num_cached_tokens("a") == 0

    run(main())


def test_an_engine_failure_ends_the_sessions_of_its_batch_only() -> None:
    """Their members hear of it, the others and the loop go on."""

    async def main() -> None:
        async with bench() as it:
            for name in "abc":
                await it.open(name)

            def fail(members: Sequence[StepMember]) -> None:
                it.target.on_step = None
                raise RuntimeError("out of memory")

            it.target.on_step = fail
            it.submit("a")
            it.submit("b")
            await asyncio.sleep(1)
            assert [str(outcome) for _, _, outcome, _ in it.delivered] == [
                "the engine failed: RuntimeError('out of memory')"
            ] * 2
            assert it.records[0].failed
            assert it.target.open_sessions == {"c"}
            it.submit("c")
            await asyncio.sleep(1)
            assert isinstance(it.delivered[-1][2], StepOutcome)
            assert await it.open("a") >= 0

    run(main())


def test_a_refused_open_leaves_nothing_behind() -> None:
    """Refused by the engine for the request, or because the engine failed; also where it would have replaced one."""

    async def main() -> None:
        async with bench(Logged(SchedulerLimits(max_sessions=1))) as it:
            await it.open("a")
            too_long = generation(b"x" * 5000, max_tokens=6000)
            assert isinstance(await it.open("a", too_long), InvalidRequest)
            await asyncio.sleep(0)
            assert it.target.open_sessions == set()
            it.target._sessions = None  # the engine is broken
            assert isinstance(await it.open("b"), EngineError)
            it.target._sessions = {}
            assert await it.open("c") == 0

    run(main())


def test_a_session_closed_while_it_is_computed_hears_nothing_and_is_gone() -> None:
    """The scheduler is not told of it again."""

    async def main() -> None:
        async with bench() as it:
            await it.open("a")
            await it.open("b")
            it.submit("a")
            it.submit("b")
            await asyncio.sleep(1)
            it.loop.close("a")
            await asyncio.sleep(STEP_TIME)
            assert it.outcomes == [(STEP_TIME, "b")]
            assert it.target.open_sessions == {"b"}
            assert it.scheduler.told[2:] == [("b", len(PROMPT))]

    run(main())


def test_a_session_closed_before_it_was_opened_is_closed_in_the_engine_too() -> None:
    """Open and close wait together for a busy engine."""

    async def main() -> None:
        async with bench() as it:
            await it.open("a")
            it.submit("a")
            await asyncio.sleep(1)
            waiting = asyncio.create_task(it.open("b"))
            await asyncio.sleep(0)
            it.loop.close("b")
            await asyncio.sleep(STEP_TIME)
            assert it.target.open_sessions == {"a"}
            assert not waiting.done()
            waiting.cancel()

    run(main())


def test_a_session_opened_anew_while_it_is_computed_starts_from_its_new_history() -> None:
    """The older round is not delivered."""

    async def main() -> None:
        async with bench() as it:
            await it.open("a")
            it.submit("a", num_right=3)
            await asyncio.sleep(1)
            await it.open("a", generation(output=b"t"))
            assert len(it.target.history("a")) == len(PROMPT) + 1
            it.submit("a")
            await asyncio.sleep(2 * STEP_TIME)
            assert it.outcomes == [(2 * STEP_TIME, "a")]

    run(main())


def test_only_what_waits_can_be_cancelled() -> None:
    """A round in the engine is delivered."""

    async def main() -> None:
        async with bench() as it:
            await it.open("a")
            await it.open("b")
            assert not it.loop.cancel("a")
            it.submit("a")
            await asyncio.sleep(1)
            it.submit("b")
            assert it.loop.cancel("b")
            assert not it.loop.cancel("a")
            await asyncio.sleep(3 * STEP_TIME)
            assert it.outcomes == [(STEP_TIME, "a")]
            it.submit("b")
            with pytest.raises(AssertionError, match="under way"):
                it.submit("b")

    run(main())


def test_opens_do_not_wait_for_the_queue() -> None:
    """They come between two batches, before the next one."""

    async def main() -> None:
        async with bench(Logged(SchedulerLimits(max_batch_requests=1))) as it:
            for name in "ab":
                await it.open(name)
                it.submit(name)
            await asyncio.sleep(1)
            await it.open("c")
            assert _now() == STEP_TIME
            assert it.outcomes == [(STEP_TIME, "a")]

    run(main())


def test_a_receiver_that_raises_does_not_stop_the_loop() -> None:
    """The next member of the batch is served."""

    async def main() -> None:
        async with bench() as it:
            await it.open("a")
            await it.open("b")
            it.loop.submit(Round("a", 1, (), lambda _outcome, _hints: 1 / 0, _now()))
            it.submit("b")
            await asyncio.sleep(2 * STEP_TIME)
            assert it.outcomes == [(STEP_TIME, "b")]

    run(main())


def test_a_scheduler_that_raises_ends_the_loop_loudly() -> None:
    """A server that hangs without a word would be worse."""

    class Broken(Logged):
        def schedule(self, now: float) -> Batch | WaitUntil:
            raise ZeroDivisionError

    async def main() -> None:
        loop = VerificationLoop(FakeTarget(), Broken(), _now, VirtualEngineTime())
        with pytest.raises(ZeroDivisionError):
            await loop.run()

    run(main())


async def test_a_long_step_does_not_hold_up_the_event_loop() -> None:
    """Live: the engine is called on one thread of its own, which may block."""
    go, threads = threading.Event(), set()

    def block(_members: Sequence[StepMember]) -> None:
        threads.add(threading.current_thread().name)
        assert go.wait(10)

    thread = EngineThread()
    target, scheduler = FakeTarget(on_step=block), Logged()
    loop = VerificationLoop(target, scheduler, _now, thread)
    task = asyncio.create_task(loop.run())
    it = Bench(target, scheduler, loop, [])
    await it.open("a")
    it.submit("a")
    await asyncio.sleep(0.05)
    assert it.delivered == []
    go.set()
    while not it.delivered:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert len(threads) == 1
    assert threading.current_thread().name not in threads
    loop.stop()
    await task
    thread.close()
