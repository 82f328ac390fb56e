"""The verification loop: asks the scheduler for a batch, lets the engine compute it, hands out what came of it.

    forever:
        open and close the sessions that wait for it
        decision = scheduler.schedule(now)
        Batch      -> evict, step, deliver
        WaitUntil  -> sleep until then, or until something arrives

The engine computes on a thread of its own; everything else happens on the event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Protocol, TypeVar

from wisp.engines.base import StepMember, StepOutcome, TargetEngine
from wisp.errors import EngineError, InvalidRequest, WispError
from wisp.logs import logger
from wisp.policy.scheduler import Scheduler
from wisp.types import (
    SLO,
    Batch,
    BatchMember,
    DraftedToken,
    GenerationRequest,
    Hints,
    OwnDrafts,
    SessionId,
    VerificationRequest,
)

log = logger(__name__)
T = TypeVar("T")


class RunsCalls(Protocol):
    """Runs a call to the engine: live on its thread, in virtual time at once and followed by a virtual sleep."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


class EngineThread:
    """The one thread that touches the engine."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="wisp-engine")

    async def __call__(self, call: Callable[[], T], /) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Wait for the running call and end the thread."""
        self._executor.shutdown()


@dataclass(frozen=True, slots=True)
class Round:
    """One trip of a session through the queue and the engine."""

    session_id: SessionId
    number: int
    draft: tuple[DraftedToken, ...]
    deliver: Callable[[StepOutcome | EngineError, Hints], None]
    """Called once on the event loop, unless the round is cancelled before the engine has it."""
    arrival: float
    """When the device's question came: what it waited since then is its queue time."""
    survival: tuple[float, ...] = ()
    deadline: float = inf
    slo: SLO | None = None
    max_own_draft: int = 0
    """Tokens that the server may draft itself, if it has a drafter."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What one batch was and how long it took; for estimators and telemetry."""

    batch: Batch
    started: float
    elapsed: float
    failed: bool = False
    num_committed: int = 0
    waited: float = 0.0
    """Seconds since the batch before in which the loop slept: nobody was there, or the scheduler held the batch back."""


@dataclass(slots=True)
class _Resident:
    """What the loop knows of an open session without asking the engine."""

    num_tokens: int
    num_cached: int = 0
    round: Round | None = None


@dataclass(frozen=True, slots=True)
class _Operation:
    """A call to the engine between two batches, and who waits for its result."""

    call: Callable[[], int]
    done: Callable[[int | Exception], None]


class VerificationLoop:
    """Drives a scheduler and an engine; callers live on the event loop and are called back there."""

    def __init__(
        self,
        engine: TargetEngine,
        scheduler: Scheduler,
        clock: Callable[[], float],
        run: RunsCalls,
        observe: Callable[[BatchRecord], None] | None = None,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._clock = clock
        self._run_call = run
        self._observe = observe
        self._wake = asyncio.Event()
        self._stopping = False
        self._waited = 0.0
        self._sessions: dict[SessionId, _Resident] = {}
        self._operations: deque[_Operation] = deque()
        self._computing: set[SessionId] = set()
        self._in_engine: set[SessionId] = set()  # touched by the engine's thread only
        self.num_evicted = 0
        """Caches that were dropped to make room, ever."""

    @property
    def num_waiting_rounds(self) -> int:
        """Rounds that wait for the engine."""
        waiting = (one for one, resident in self._sessions.items() if resident.round is not None)
        return sum(one not in self._computing for one in waiting)

    @property
    def num_waiting_operations(self) -> int:
        """Opens and closes that wait for the engine."""
        return len(self._operations)

    def open(
        self,
        session_id: SessionId,
        owner: str,
        request: GenerationRequest,
        done: Callable[[int | WispError], None],
    ) -> None:
        """Open a session in the engine; `done` gets the number of cached tokens, or what went wrong.

        An open session of this id is replaced. The caller has asked the scheduler for admission.
        """
        self.cancel(session_id)
        resident = self._sessions[session_id] = _Resident(len(request.tokens))
        self._operate(
            partial(self._open_in_engine, session_id, owner, request),
            partial(self._opened, session_id, resident, done),
        )

    def close(self, session_id: SessionId) -> None:
        """Forget a session: here at once, in the engine when it is free."""
        if self._sessions.pop(session_id, None) is not None:
            self._scheduler.release(session_id)
            self._operate(partial(self._close_in_engine, session_id), partial(_log_failure, session_id))

    def submit(self, work: Round) -> None:
        """Queue a round of an open session that has none under way."""
        resident = self._sessions[work.session_id]
        if resident.round is not None:
            raise AssertionError(f"{work.session_id} has a round under way")
        resident.round = work
        self._scheduler.add(
            VerificationRequest(
                session_id=work.session_id,
                round=work.number,
                num_history_tokens=resident.num_tokens,
                num_cached_tokens=resident.num_cached,
                num_draft_tokens=len(work.draft),
                arrival=work.arrival,
                survival=work.survival,
                deadline=work.deadline,
                slo=work.slo,
                max_own_draft=work.max_own_draft,
            )
        )
        self._wake.set()

    def cancel(self, session_id: SessionId) -> bool:
        """Take a session's round out of the queue; False where the engine is computing it (or there is none)."""
        resident = self._sessions.get(session_id)
        if resident is None or resident.round is None or session_id in self._computing:
            return False
        resident.round = None
        self._scheduler.cancel(session_id)
        return True

    async def run(self) -> None:
        """Work until `stop`; raises what the scheduler raises."""
        while not self._stopping:
            if self._operations:
                await self._run_operations()
            decision = self._scheduler.schedule(self._clock())
            evictions = self._scheduler.evictions()
            for session_id in evictions:
                self._note_eviction(session_id)
            if isinstance(decision, Batch):
                await self._run_batch(decision, evictions)
            elif evictions:
                self._operate(partial(self._evict_in_engine, evictions), partial(_log_failure, "evictions"))
            else:
                await self._wait(decision.time)

    def stop(self) -> None:
        """Let `run` return when the engine has finished what it is doing."""
        self._stopping = True
        self._wake.set()

    async def _wait(self, until: float) -> None:
        if self._operations or self._stopping:
            return
        self._wake.clear()
        began = self._clock()
        try:
            async with asyncio.timeout(None if until == inf else max(until - began, 0.0)):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._waited += self._clock() - began

    # Sessions in the engine

    def _operate(self, call: Callable[[], int], done: Callable[[int | Exception], None]) -> None:
        self._operations.append(_Operation(call, done))
        self._wake.set()

    async def _run_operations(self) -> None:
        """Everything that waits for the engine, in one visit to its thread."""
        operations = tuple(self._operations)
        self._operations.clear()
        results = await self._run_call(lambda: [_attempt(operation.call) for operation in operations])
        for operation, result in zip(operations, results, strict=True):
            _guarded(partial(operation.done, result))

    def _opened(
        self,
        session_id: SessionId,
        resident: _Resident,
        done: Callable[[int | WispError], None],
        result: int | Exception,
    ) -> None:
        """Note what the engine said, unless the session was closed or replaced in the meantime."""
        if self._sessions.get(session_id) is not resident:
            return
        if isinstance(result, int):
            resident.num_cached = result
            self._scheduler.cached(session_id, result, self._clock())
            done(result)
            return
        del self._sessions[session_id]
        self._scheduler.release(session_id)
        done(result if isinstance(result, InvalidRequest) else _engine_error(result))

    def _open_in_engine(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        try:
            num_cached = self._engine.open(session_id, owner, request)
        except BaseException:
            self._close_in_engine(session_id)
            raise
        self._in_engine.add(session_id)
        return num_cached

    def _close_in_engine(self, session_id: SessionId) -> int:
        if session_id in self._in_engine:
            self._in_engine.discard(session_id)
            self._engine.close(session_id)
        return 0

    def _evict_in_engine(self, session_ids: Sequence[SessionId]) -> int:
        for session_id in session_ids:
            if session_id in self._in_engine:
                self._engine.evict(session_id)
        return 0

    def _note_eviction(self, session_id: SessionId) -> None:
        self.num_evicted += 1
        if session_id in self._sessions:
            self._sessions[session_id].num_cached = 0

    # Batches

    async def _run_batch(self, batch: Batch, evictions: Sequence[SessionId]) -> None:
        residents = [self._sessions[member.request.session_id] for member in batch.members]
        steps = [_step_member(member, resident) for member, resident in zip(batch.members, residents, strict=True)]
        self._computing = {member.request.session_id for member in batch.members if member.completes}
        for member, resident in zip(batch.members, residents, strict=True):
            # Booked now: a round that takes the place of one in prefill may be queued before this batch is done.
            resident.num_cached += member.num_prefill_tokens
        started, waited, self._waited = self._clock(), self._waited, 0.0
        result = await self._run_call(partial(self._compute, steps, evictions))
        elapsed = self._clock() - started
        self._computing = set()
        num_committed = 0 if isinstance(result, Exception) else sum(outcome.num_committed for outcome, _ in result)
        if self._observe is not None:
            failed = isinstance(result, Exception)
            self._observe(BatchRecord(batch, started, elapsed, failed, num_committed, waited))
        if isinstance(result, Exception):
            self._batch_failed(batch, residents, result)
            return
        own = [outcome for outcome, _ in result if outcome.num_own_drafted]
        drafted = OwnDrafts(len(own), sum(one.num_own_drafted for one in own), sum(len(one.own_tokens) for one in own))
        self._scheduler.observe(batch, started + elapsed, elapsed, num_committed, drafted)
        for member, resident, (outcome, num_cached) in zip(batch.members, residents, result, strict=True):
            self._member_done(member, resident, outcome, num_cached)
        prices = self._scheduler.prices()
        for member, resident, (outcome, _) in zip(batch.members, residents, result, strict=True):
            if member.completes:
                hints = Hints(started - member.request.arrival, elapsed, prices)
                self._deliver(member.request.session_id, resident, outcome, hints)

    def _compute(
        self, steps: Sequence[StepMember], evictions: Sequence[SessionId]
    ) -> list[tuple[StepOutcome, int]] | Exception:
        """One batch on the engine's thread: outcomes, and how much of each history is cached afterwards."""
        try:
            self._evict_in_engine(evictions)
            outcomes = self._engine.step(steps)
            return [
                (outcome, self._engine.num_cached_tokens(step.session_id))
                for step, outcome in zip(steps, outcomes, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 - whatever an engine raises must not stop the others' sessions
            return error

    def _member_done(self, member: BatchMember, resident: _Resident, outcome: StepOutcome, num_cached: int) -> None:
        """Book what a batch did to a session, unless it was closed or replaced in the meantime."""
        session_id = member.request.session_id
        if self._sessions.get(session_id) is not resident:
            return
        if member.completes:
            resident.num_tokens += outcome.num_committed
        resident.num_cached = num_cached
        self._scheduler.cached(session_id, num_cached, self._clock())

    def _batch_failed(self, batch: Batch, residents: Sequence[_Resident], error: Exception) -> None:
        """Give up the batch's sessions: what the engine holds of them is not known any more."""
        log.error("engine failed", sessions=len(residents), error=repr(error), exc_info=error)
        for member, resident in zip(batch.members, residents, strict=True):
            self._deliver(member.request.session_id, resident, _engine_error(error), Hints())
            if self._sessions.get(member.request.session_id) is resident:
                self.close(member.request.session_id)

    def _deliver(
        self, session_id: SessionId, resident: _Resident, outcome: StepOutcome | EngineError, hints: Hints
    ) -> None:
        work, resident.round = resident.round, None
        if work is None or self._sessions.get(session_id) is not resident:
            return
        _guarded(partial(work.deliver, outcome, hints))


def _step_member(member: BatchMember, resident: _Resident) -> StepMember:
    """What the engine does for a member: the scheduler may have trimmed the draft."""
    session_id = member.request.session_id
    if member.num_verified is None:
        return StepMember(session_id, member.num_prefill_tokens)
    if resident.round is None:
        raise AssertionError(f"{session_id} was scheduled without a round")
    if member.request.drafted_here:
        return StepMember(session_id, member.num_prefill_tokens, (), num_to_draft=member.num_verified)
    draft, rest = resident.round.draft[: member.num_verified], resident.round.draft[member.num_verified :]
    return StepMember(session_id, member.num_prefill_tokens, draft, rest[0] if rest else None)


def _guarded(receiver: Callable[[], None]) -> None:
    """Call back; a receiver that raises must not stop the loop that serves the others."""
    try:
        receiver()
    except Exception:
        log.exception("a result could not be delivered")


def _attempt(call: Callable[[], int]) -> int | Exception:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - handed to whoever asked for the call
        return error


def _engine_error(error: Exception) -> EngineError:
    return error if isinstance(error, EngineError) else EngineError(f"the engine failed: {error!r}")


def _log_failure(what: str, result: int | Exception) -> None:
    if isinstance(result, Exception):
        log.error("engine call failed", of=what, error=repr(result), exc_info=result)
