"""Drafting: one thread, one batch for all who wait, and failures that stay where they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tests.edge.in_memory import PROMPT, generation_request
from tests.fakes import FakeDrafter, next_token
from wisp.drafting import Drafting, DraftWorker
from wisp.policy.controller import FixedLength
from wisp.policy.session import Session, SessionSettings
from wisp.types import DraftedToken, SamplingParams, SessionId, Verdict


@dataclass(slots=True)
class RecordingDrafter(FakeDrafter):
    """Notes its batches and threads; waits in `draft` for `gate`, once something waits for it."""

    batches: list[tuple[SessionId, ...]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    entered: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)
    failing: bool = False
    silent: bool = False
    """Answers for nobody."""

    def draft(self, session_ids: Sequence[SessionId]) -> list[DraftedToken | None]:
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(10.0)
        self.batches.append(tuple(session_ids))
        if self.failing:
            raise RuntimeError("no memory")
        return [] if self.silent else FakeDrafter.draft(self, session_ids)


@pytest.fixture
def drafter() -> Iterator[RecordingDrafter]:
    given = RecordingDrafter(accuracy=1.0)
    given.gate.set()
    yield given
    given.gate.set()


@pytest.fixture
def worker(drafter: RecordingDrafter) -> Iterator[DraftWorker]:
    given = DraftWorker(drafter)
    yield given
    given.shutdown()


async def opened(worker: DraftWorker, drafter: RecordingDrafter, *names: SessionId) -> None:
    for name in names:
        await worker.open(name, generation_request())
    drafter.batches.clear()
    drafter.entered.clear()


async def test_waiting_sessions_are_drafted_in_one_batch(worker: DraftWorker, drafter: RecordingDrafter) -> None:
    """While the engine is busy with one session, those that come meanwhile form the next batch."""
    await opened(worker, drafter, "a", "b", "c")
    drafter.gate.clear()
    first = asyncio.create_task(worker.draft("a"))
    await asyncio.to_thread(drafter.entered.wait)
    others = [asyncio.create_task(worker.draft(name)) for name in ("b", "c")]
    await asyncio.sleep(0)
    drafter.gate.set()
    drafted = await asyncio.gather(first, *others)
    assert drafter.batches == [("a",), ("b", "c")]
    read = (*PROMPT, next_token(PROMPT, SamplingParams()))  # opening has drafted a token
    assert [one and one.token for one in drafted] == [next_token(read, SamplingParams())] * 3
    assert len(drafter.threads) == 1


async def test_who_stops_waiting_is_not_drafted_for(worker: DraftWorker, drafter: RecordingDrafter) -> None:
    """A cancelled session drops out of the batch that forms."""
    await opened(worker, drafter, "a", "b", "c")
    drafter.gate.clear()
    first = asyncio.create_task(worker.draft("a"))
    await asyncio.to_thread(drafter.entered.wait)
    cancelled, other = (asyncio.create_task(worker.draft(name)) for name in ("b", "c"))
    await asyncio.sleep(0)
    cancelled.cancel()
    drafter.gate.set()
    await asyncio.gather(first, other)
    assert drafter.batches == [("a",), ("c",)]


async def test_a_session_that_closes_while_it_waits_does_not_harm_the_others(
    worker: DraftWorker, drafter: RecordingDrafter
) -> None:
    """It hears that nothing is proposed; the batch that forms is of the others."""
    await opened(worker, drafter, "a", "b", "c")
    drafter.gate.clear()
    tasks = [asyncio.create_task(worker.draft("a"))]
    await asyncio.to_thread(drafter.entered.wait)
    tasks += [asyncio.create_task(worker.draft(name)) for name in ("b", "c")]
    await asyncio.sleep(0)
    worker.close("b")
    drafter.gate.set()
    drafted = await asyncio.gather(*tasks)
    assert [one is None for one in drafted] == [False, True, False]


async def test_emulated_draft_time_is_added_per_token(drafter: RecordingDrafter) -> None:
    """A slower device is acted by sleeping after each token."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    worker = DraftWorker(drafter, emulated_draft_time=0.5, sleep=sleep)
    await worker.open("a", generation_request())
    await worker.draft("a")
    await worker.draft("a")
    assert slept == [0.5, 0.5]
    worker.shutdown()


async def test_a_failing_batch_is_told_to_all_its_sessions(worker: DraftWorker, drafter: RecordingDrafter) -> None:
    """The error reaches whoever waits; the worker goes on."""
    await opened(worker, drafter, "a", "b")
    drafter.failing = True
    results = await asyncio.gather(worker.draft("a"), worker.draft("b"), return_exceptions=True)
    assert all(isinstance(result, RuntimeError) for result in results)
    drafter.failing = False
    assert await worker.draft("a") is not None


def session(num_draft_tokens: int = 3) -> Session:
    return Session(generation_request(), FixedLength(num_draft_tokens), SessionSettings(), None, 0.0)


async def drafting(worker: DraftWorker, given: Session) -> Drafting:
    """A drafting that has read the prompt, in a session that has its first token."""
    result = Drafting(worker, "s", clock=lambda: 0.0)
    result.start(given.generation)
    assert result._opening is not None
    await result._opening
    given.begin_round(0.0)
    given.request(0.0)
    first = next_token(given.tokens, SamplingParams())
    result.record(0, given.on_verdict(Verdict(1, 0, 0, first), 0.0))
    given.begin_round(0.0)
    return result


async def test_verdicts_reach_the_engine_before_the_next_draft(worker: DraftWorker) -> None:
    """A draft continues the history that the target committed, whatever was drafted before."""
    given = session()
    drafts = await drafting(worker, given)
    await drafts.extend(given)
    wrong, right = given.draft[1].token, given.draft[0].token
    drafts.record(1, [wrong + 1])
    given.on_verdict(Verdict(2, 3, 1, wrong + 1), 0.0)
    given.begin_round(0.0)
    await drafts.extend(given)
    assert given.tokens[-2:] == [right, wrong + 1]
    assert given.draft[0].token == next_token(given.tokens, SamplingParams())


async def test_nothing_is_drafted_while_the_prompt_is_being_read(
    worker: DraftWorker, drafter: RecordingDrafter
) -> None:
    """A slow drafter does not hold up the generation, and catches up when it is ready."""
    drafter.gate.clear()
    given = session()
    drafts = Drafting(worker, "s", clock=lambda: 0.0)
    drafts.start(given.generation)
    for number in (1, 2):
        given.begin_round(0.0)
        await drafts.extend(given)
        assert not given.draft
        assert drafts.active
        given.request(0.0)
        token = next_token(given.tokens, SamplingParams())
        drafts.record(0, given.on_verdict(Verdict(number, 0, 0, token), 0.0))
    drafter.gate.set()
    assert drafts._opening is not None
    await drafts._opening
    given.begin_round(0.0)
    await drafts.extend(given)
    assert given.draft[0].token == next_token(given.tokens, SamplingParams())


async def test_a_prompt_beyond_the_drafters_context_is_not_even_read(drafter: RecordingDrafter) -> None:
    """A drafter that cannot help is left alone."""
    drafter.context_length = len(PROMPT)
    worker = DraftWorker(drafter)
    drafts = Drafting(worker, "s", clock=lambda: 0.0)
    drafts.start(generation_request())
    assert not drafts.active
    worker.shutdown()


async def test_closing_while_the_prompt_is_being_read(worker: DraftWorker, drafter: RecordingDrafter) -> None:
    """A generation that ends early leaves nothing in the drafter."""
    drafter.gate.clear()
    drafts = Drafting(worker, "s", clock=lambda: 0.0)
    drafts.start(generation_request())
    await asyncio.to_thread(drafter.entered.wait)
    drafts.close()
    drafts.close()
    drafter.gate.set()
    await asyncio.wrap_future(worker._thread.submit(int))
    assert not drafter._sessions


async def test_an_engine_that_answers_for_too_few_is_a_failure_too(
    worker: DraftWorker, drafter: RecordingDrafter
) -> None:
    """Nobody waits for ever for a token that does not come."""
    await opened(worker, drafter, "a")
    drafter.silent = True
    with pytest.raises(ValueError, match="zip"):
        await worker.draft("a")
