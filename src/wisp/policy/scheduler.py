"""Which requests form the next batch, and when.

The interface every scheduler implements, and the simplest one: first come, first served, continuous batching with
chunked prefill. Schedulers hold the queue and know which sessions occupy the KV cache; they never run anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

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


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What a batch, and the server, can hold."""

    max_sessions: int = 256
    max_batch_requests: int = 64
    max_batch_tokens: int = 2048
    """Positions computed in one step."""
    max_prefill_tokens: int = 512
    """Of those, prompt tokens: so that a long prompt does not stop everybody."""
    kv_capacity_tokens: int = 1 << 31
    kv_page_tokens: int = 1
    """Granularity in which the engine hands out its cache."""
    retry_after: float = 1.0
    """Told to sessions that are refused, seconds."""

    def occupied(self, num_tokens: int) -> int:
        """Tokens of the cache's capacity that `num_tokens` take: rounded up to whole pages."""
        return -(-num_tokens // self.kv_page_tokens) * self.kv_page_tokens


class Scheduler(Protocol):
    """Decides admission, batches and evictions; `now` is the caller's clock in seconds."""

    def admit(self, session: SessionDemand, now: float) -> Admitted | RetryAfter:
        """Whether a session may start; an admitted one counts until it is released. Admitting it again is allowed."""
        ...

    def release(self, session_id: SessionId) -> None:
        """Forget a session that ended, with its request."""
        ...

    def add(self, request: VerificationRequest) -> None:
        """Queue a request; a session has at most one, a newer one takes its place."""
        ...

    def cancel(self, session_id: SessionId) -> None:
        """Take a session's request out of the queue."""
        ...

    def cached(self, session_id: SessionId, num_cached_tokens: int, now: float) -> None:
        """Note how much of the KV cache a session occupies: after it opens and after each of its batches."""
        ...

    def schedule(self, now: float) -> Batch | WaitUntil:
        """The next batch, for an engine that is free; or until when to wait for one."""
        ...

    def evictions(self) -> tuple[SessionId, ...]:
        """Sessions whose cache has to be dropped before the batch that was just scheduled runs."""
        ...

    def prices(self) -> Prices:
        """What one more position, and one more round, cost the fleet."""
        ...


class FCFSScheduler:
    """First come, first served: every waiting request that fits, in the order of arrival."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self._waiting: OrderedDict[SessionId, VerificationRequest] = OrderedDict()
        self._sessions: set[SessionId] = set()
        self._resident: OrderedDict[SessionId, int] = OrderedDict()  # cached tokens, longest idle first
        self._evicting: tuple[SessionId, ...] = ()

    def admit(self, session: SessionDemand, now: float) -> Admitted | RetryAfter:
        if session.session_id not in self._sessions and len(self._sessions) >= self._limits.max_sessions:
            return RetryAfter(self._limits.retry_after, f"all {self._limits.max_sessions} sessions are taken")
        self._sessions.add(session.session_id)
        return Admitted()

    def release(self, session_id: SessionId) -> None:
        self.cancel(session_id)
        self._sessions.discard(session_id)
        self._resident.pop(session_id, None)

    def add(self, request: VerificationRequest) -> None:
        self._waiting.pop(request.session_id, None)
        self._waiting[request.session_id] = request

    def cancel(self, session_id: SessionId) -> None:
        self._waiting.pop(session_id, None)

    def cached(self, session_id: SessionId, num_cached_tokens: int, now: float) -> None:
        self._resident.pop(session_id, None)
        if num_cached_tokens:
            self._resident[session_id] = num_cached_tokens

    def schedule(self, now: float) -> Batch | WaitUntil:
        members = list(self._choose())
        self._evicting = self._make_room(members)
        if not members:
            return WaitUntil()
        for member in members:
            self._take(member)
        return Batch(tuple(members))

    def evictions(self) -> tuple[SessionId, ...]:
        evicting, self._evicting = self._evicting, ()
        return evicting

    def prices(self) -> Prices:
        return Prices()

    def _choose(self) -> Iterator[BatchMember]:
        """Members in the order of arrival, within the limits of a batch."""
        tokens, prefill = self._limits.max_batch_tokens, self._limits.max_prefill_tokens
        for _, request in zip(range(self._limits.max_batch_requests), self._waiting.values(), strict=False):
            member = _fit(request, tokens, prefill)
            if member is None:
                return
            tokens -= member.num_new_tokens
            prefill -= member.num_prefill_tokens
            yield member

    def _make_room(self, members: list[BatchMember]) -> tuple[SessionId, ...]:
        """Choose what to evict so that `members` fit the KV cache; members that cannot fit are dropped from the end.

        Idle sessions go first, longest idle first, then the waiting ones that are not in the batch, latest first.
        """
        evicted: list[SessionId] = []
        while members:
            chosen = {member.request.session_id for member in members}
            excess = self._occupied_after(members, evicted) - self._limits.kv_capacity_tokens
            if excess <= 0:
                break
            victim = self._victim(chosen, evicted)
            if victim is None:
                members.pop()
            else:
                evicted.append(victim)
        for session_id in evicted:
            self._evict(session_id)
        return tuple(evicted)

    def _occupied_after(self, members: list[BatchMember], evicted: list[SessionId]) -> int:
        occupied = {session_id: tokens for session_id, tokens in self._resident.items() if session_id not in evicted}
        for member in members:
            occupied[member.request.session_id] = member.request.num_cached_tokens + member.num_new_tokens
        return sum(self._limits.occupied(tokens) for tokens in occupied.values())

    def _victim(self, chosen: set[SessionId], evicted: list[SessionId]) -> SessionId | None:
        free = [session_id for session_id in self._resident if session_id not in chosen and session_id not in evicted]
        idle = next((session_id for session_id in free if session_id not in self._waiting), None)
        if idle is not None:
            return idle
        return next((session_id for session_id in reversed(self._waiting) if session_id in free), None)

    def _evict(self, session_id: SessionId) -> None:
        self._resident.pop(session_id, None)
        if session_id in self._waiting:
            self._waiting[session_id] = replace(self._waiting[session_id], num_cached_tokens=0)

    def _take(self, member: BatchMember) -> None:
        """Remove a member's request from the queue, or note its progress."""
        request = member.request
        if member.completes:
            del self._waiting[request.session_id]
        else:
            cached = request.num_cached_tokens + member.num_prefill_tokens
            self._waiting[request.session_id] = replace(request, num_cached_tokens=cached)


def _fit(request: VerificationRequest, tokens: int, prefill: int) -> BatchMember | None:
    """As much of a request as fits into `tokens` positions, `prefill` of them of prompts; None: nothing."""
    needed = request.num_prefill_tokens
    chunk = min(needed, prefill, tokens)
    if chunk == needed and tokens > chunk:
        return BatchMember(request, chunk, min(request.num_draft_tokens, tokens - chunk - 1))
    return BatchMember(request, chunk, None) if chunk > 0 else None
