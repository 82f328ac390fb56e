"""The server: sessions, the scheduler's batches, and verdicts; asked and told in the order of `server/loop.py`.

The scheduler is asked when the engine is free, on arrival, and at the time it named; sessions open between batches.
A verifier that fails forgets everything, its batch included, and its devices' connections break.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from wisp.policy.batch_time import BatchShape, BatchTime
from wisp.policy.scheduler import Scheduler
from wisp.sim.events import Events
from wisp.sim.script import Outcome
from wisp.sim.served import ServedSession
from wisp.types import (
    Admitted,
    Batch,
    BatchMember,
    DecodeRequest,
    DraftRequest,
    FinishReason,
    Hints,
    OwnDrafts,
    RetryAfter,
    SessionDemand,
    SessionId,
    Verdict,
    WaitUntil,
)


class WatchesBatches(Protocol):
    """Is told of every batch when it is done."""

    def __call__(self, batch: Batch, started: float, elapsed: float) -> None: ...


@dataclass(slots=True)
class Verifier:
    """One engine and its scheduler in virtual time."""

    events: Events
    make_scheduler: Callable[[], Scheduler]
    batch_time: BatchTime
    watch: WatchesBatches
    draft_time: BatchTime | None = None
    """Of a drafter beside the target, for the systems that draft on the server."""
    drafter_shares: bool = False
    """Whether its caches are in the target's memory: then they are given up where drafts are not made any more."""
    swap_s_per_token: float | None = None
    """Of a cache that comes back from the host's memory; None: evicted caches are lost."""
    after_batch: BatchTime | None = None
    """Seconds that the server itself takes after a batch before it can begin the next; None: none."""
    scheduler: Scheduler = field(init=False)
    is_up: bool = field(default=True, init=False)
    _num_failures: int = field(default=0, init=False)
    sessions: dict[SessionId, ServedSession] = field(default_factory=dict, init=False)
    """Those that were admitted and not closed."""
    _opening: list[ServedSession] = field(default_factory=list, init=False)
    _busy: bool = field(default=False, init=False)
    _woken: bool = field(default=False, init=False)
    """Whether something happened since the scheduler was asked last."""
    _wake_at: float = field(default=inf, init=False)

    def __post_init__(self) -> None:
        self.scheduler = self.make_scheduler()

    @property
    def num_cached_tokens(self) -> int:
        """In the KV cache."""
        return sum(session.num_cached - session.num_swapped for session in self.sessions.values())

    # Loss

    def fail(self, _: object = None) -> None:
        """Lose everything, and every connection."""
        lost = list(self.sessions.values())
        self.sessions.clear()
        self._opening.clear()
        self._num_failures += 1
        self.is_up = self._woken = self._busy = False
        self._wake_at = inf
        for session in lost:
            session.lost()

    def restart(self, _: object = None) -> None:
        """Come back, empty."""
        self.is_up, self.scheduler = True, self.make_scheduler()

    # What devices send

    def open(self, session: ServedSession) -> Admitted | RetryAfter:
        """Ask for admission; an admitted session opens when the engine is free."""
        num_left = session.max_new_tokens - session.num_output
        demand = SessionDemand(session.session_id, session.num_tokens, num_left, session.script.slo)
        answer = self.scheduler.admit(demand, self.events.now)
        if isinstance(answer, Admitted):
            self.sessions[session.session_id] = session
            self._opening.append(session)
            self._wake()
        return answer

    def ask(self, session: ServedSession, request: DraftRequest | DecodeRequest) -> None:
        """Take a round of a session that has none under way; one that was lost is none any more."""
        if self.sessions.get(session.session_id) is not session:
            return
        now = self.events.now
        session.request, session.arrival = request, now
        session.deadline = now + request.time_left - request.rtt
        session.tokens_left = request.num_tokens if isinstance(request, DecodeRequest) else 1
        if session.is_open:
            self._queue(session)

    def close(self, session: ServedSession) -> None:
        """Forget a session that ended."""
        if self.sessions.pop(session.session_id, None) is not None:
            self.scheduler.release(session.session_id)
            self._wake()

    # Batches

    def _wake(self) -> None:
        """Have the scheduler asked once all events of this instant were taken."""
        if not self._woken:
            self._woken = True
            self.events.finally_now(self._settle)

    def _settle(self) -> None:
        """Start a batch, if the engine is free and there is one."""
        while self._woken and not self._busy:
            self._woken = False
            self._open_waiting()
            decision = self.scheduler.schedule(self.events.now)
            evictions = self.scheduler.evictions()
            for session_id in evictions:
                if session_id in self.sessions:
                    self._evict(self.sessions[session_id])
            if isinstance(decision, Batch):
                self._start(decision)
            elif evictions:
                self._woken = True
            else:
                self._wait(decision)

    def _evict(self, session: ServedSession) -> None:
        if self.drafter_shares:
            session.num_drafter_knows = 0
        if self.swap_s_per_token is None:
            session.num_cached = 0
        else:
            session.num_swapped = session.num_cached

    def _open_waiting(self) -> None:
        for session in self._opening:
            if session.session_id in self.sessions:
                session.is_open = True
                self.scheduler.cached(session.session_id, 0, self.events.now)
                if session.request is not None:
                    self._queue(session)
        self._opening.clear()

    def _wait(self, decision: WaitUntil) -> None:
        self._wake_at = decision.time
        if decision.time < inf:
            assert decision.time > self.events.now, "the scheduler waits for the present"
            self.events.at(decision.time, self._ask_again, decision.time)

    def _ask_again(self, time: float) -> None:
        """Unless another time was named since."""
        if time == self._wake_at:
            self._wake()

    def _queue(self, session: ServedSession) -> None:
        self.scheduler.add(session.verification())
        self._wake()

    def _start(self, batch: Batch) -> None:
        for member in batch.members:
            if member.num_prefill_tokens:
                self.sessions[member.request.session_id].num_cached += member.num_prefill_tokens
        self._busy, self._wake_at = True, inf
        elapsed = self.batch_time(BatchShape.of(batch)) + self._drafting_time(batch) + self._swapping_time(batch)
        self.events.at(self.events.now + elapsed, self._done, (batch, self.events.now, self._num_failures))

    def _swapping_time(self, batch: Batch) -> float:
        """Seconds in which caches of members come back from the host; going there overlaps with the batch before."""
        if self.swap_s_per_token is None:
            return 0.0
        num_swapped = 0
        for member in batch.members:
            session = self.sessions[member.request.session_id]
            num_swapped += session.num_swapped
            session.num_swapped = 0
        return self.swap_s_per_token * num_swapped

    def _drafting_time(self, batch: Batch) -> float:
        """Seconds that the drafter beside the target takes: it drafts for all members together, token by token."""
        time, position = 0.0, 0
        drafting = [member for member in batch.members if member.request.drafted_here and member.num_verified]
        while drafting:
            assert self.draft_time is not None, "the scheduler drafts on the server, where there is no drafter"
            time += self.draft_time(BatchShape.of_members(self._draft_step(member, position) for member in drafting))
            position += 1
            drafting = [member for member in drafting if (member.num_verified or 0) > position]
        return time

    def _draft_step(self, member: BatchMember, position: int) -> tuple[int, int]:
        """New and cached tokens of a member in the drafter; the first step also reads what it does not know yet."""
        session, history = self.sessions[member.request.session_id], member.request.num_history_tokens
        if position:
            return 1, history + position - 1
        unknown, session.num_drafter_knows = history - session.num_drafter_knows, history
        return max(unknown, 1), history - max(unknown, 1)

    def _done(self, job: tuple[Batch, float, int]) -> None:
        batch, started, num_failures = job
        if num_failures != self._num_failures:
            return
        elapsed = self.events.now - started  # as a clock says it: the estimator must learn the same as the live one
        if self.after_batch is None:
            self._free(num_failures)
        else:
            self.events.at(self.events.now + self.after_batch(BatchShape.of(batch)), self._free, num_failures)
        self.watch(batch, started, elapsed)
        verified = [one for one in map(self._member_done, batch.members) if one is not None]
        num_committed = sum([committed for _, _, _, committed in verified])
        own = [(member.num_verified, outcome[0]) for _, member, outcome, _ in verified if member.request.drafted_here]
        drafts = [(length, accepted) for length, accepted in own if length]
        drafted = OwnDrafts(len(drafts), sum([one for one, _ in drafts]), sum([one for _, one in drafts]))
        self.scheduler.observe(batch, self.events.now, elapsed, num_committed, drafted)
        prices = self.scheduler.prices()
        for session, member, outcome, committed in verified:
            hints = Hints(started - member.request.arrival, elapsed, prices)
            if isinstance(session.request, DraftRequest):
                self._judge(session, session.request, member, outcome, hints)
            else:
                self._tell_tokens(session, committed, outcome[2], hints)

    def _free(self, num_failures: int) -> None:
        """Be ready for the next batch, unless the verifier was lost in the meantime."""
        if num_failures == self._num_failures:
            self._busy = self._woken = False
            self._wake()

    def _member_done(self, member: BatchMember) -> tuple[ServedSession, BatchMember, Outcome, int] | None:
        """Book what a batch did to a session, and say how many tokens it committed.

        None: it was closed in the meantime, or only its history was read.
        """
        session = self.sessions.get(member.request.session_id)
        if session is None:
            return None
        if member.num_verified is None:
            self.scheduler.cached(session.session_id, session.num_cached, self.events.now)
            return None
        outcome = session.script.verify(session.num_output, member.num_verified, session.max_new_tokens)
        if member.request.drafted_here:
            # Of a draft, the drafter has read all but the last token.
            session.num_drafter_knows += min(outcome[0], max(member.num_verified - 1, 0))
        elif member.request.max_own_draft and self.drafter_shares:
            session.num_drafter_knows = 0
        num_committed = outcome[0] + (outcome[1] is not None)
        session.num_output += num_committed
        session.num_cached = session.script.num_prompt_tokens + session.num_output - 1
        self.scheduler.cached(session.session_id, session.num_cached, self.events.now)
        return session, member, outcome, num_committed

    def _judge(
        self, session: ServedSession, request: DraftRequest, member: BatchMember, outcome: Outcome, hints: Hints
    ) -> None:
        """Send the verdict on a draft."""
        session.tokens_left = 0
        assert member.num_verified is not None, "only what was verified is judged"
        accepted, next_token, reason = outcome
        session.send(Verdict(request.round, member.num_verified, accepted, next_token, (), reason, True, hints))

    def _tell_tokens(
        self, session: ServedSession, num_committed: int, reason: FinishReason | None, hints: Hints
    ) -> None:
        """Send a verdict per token of plain decoding, which then goes on."""
        request, script, last = session.request, session.script, session.num_output - 1
        assert request is not None, "a verdict answers a request"
        session.tokens_left -= num_committed
        going_on = session.tokens_left > 0 and reason is None
        if num_committed > 1:
            for position in range(session.num_output - num_committed, last):
                session.send(Verdict(request.round, 0, 0, script.token(position), (), None, False, hints))
        session.send(Verdict(request.round, 0, 0, script.token(last), (), reason, not going_on, hints))
        if going_on:
            self._decode_on(session, num_committed)

    def _decode_on(self, session: ServedSession, num_committed: int) -> None:
        """Plain decoding's next token is due one token time after the one before."""
        session.deadline += 0.0 if session.script.slo is None else num_committed / session.script.slo.tokens_per_s
        session.arrival = self.events.now
        self._queue(session)
