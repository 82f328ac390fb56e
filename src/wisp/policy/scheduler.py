"""Which requests form the next batch, and when.

The interface every scheduler implements, and the simplest one: first come, first served, continuous batching with
chunked prefill. Schedulers hold the queue and know which sessions occupy the KV cache; they never run anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from wisp.policy.residency import KVResidency
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

NONE_DRAFTED = OwnDrafts()


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
    drafter_kv_share: float = 0.0
    """What a token takes of the cache in a drafter beside the target, over what it takes in the target; 0: the drafter
    has memory of its own."""
    retry_after: float = 1.0
    """Told to sessions that are refused, seconds."""
    swaps: bool = False
    """Whether evicted caches come back from the host's memory, instead of being computed again."""

    def left_cached(self, request: VerificationRequest) -> VerificationRequest:
        """What an eviction makes of a waiting request."""
        return request if self.swaps else replace(request, num_cached_tokens=0)

    def occupied(self, num_tokens: int) -> int:
        """Tokens of the cache's capacity that `num_tokens` take: rounded up to whole pages."""
        page = self.kv_page_tokens
        return num_tokens if page == 1 else -(-num_tokens // page) * page


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

    def observe(
        self, batch: Batch, now: float, elapsed: float, num_committed: int, own: OwnDrafts = NONE_DRAFTED
    ) -> None:
        """Learn from a batch that is done: the seconds it took, and how many tokens it committed.

        `own` is what the server drafted itself, as far as it did: a drafter may propose less than it was asked for.
        """
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
        self._residency = KVResidency(limits.kv_capacity_tokens, limits.occupied)
        self._evicting: tuple[SessionId, ...] = ()

    def admit(self, session: SessionDemand, now: float) -> Admitted | RetryAfter:
        if session.session_id not in self._sessions and len(self._sessions) >= self._limits.max_sessions:
            return RetryAfter(self._limits.retry_after, f"all {self._limits.max_sessions} sessions are taken")
        self._sessions.add(session.session_id)
        return Admitted()

    def release(self, session_id: SessionId) -> None:
        self.cancel(session_id)
        self._sessions.discard(session_id)
        self._residency.forget(session_id)

    def add(self, request: VerificationRequest) -> None:
        self._waiting.pop(request.session_id, None)
        self._waiting[request.session_id] = request

    def cancel(self, session_id: SessionId) -> None:
        self._waiting.pop(session_id, None)

    def cached(self, session_id: SessionId, num_cached_tokens: int, now: float) -> None:
        self._residency.note(session_id, num_cached_tokens, now)

    def schedule(self, now: float) -> Batch | WaitUntil:
        members = list(self._choose(now))
        self._residency.make_room(members)
        self._evicting = self._residency.take_evicted()
        for session_id in self._evicting:
            if session_id in self._waiting:
                self._waiting[session_id] = self._limits.left_cached(self._waiting[session_id])
        if not members:
            return WaitUntil(self._residency.next_gone(now) if self._waiting else inf)
        for member in members:
            self._take(member)
        return Batch(tuple(members))

    def observe(
        self, batch: Batch, now: float, elapsed: float, num_committed: int, own: OwnDrafts = NONE_DRAFTED
    ) -> None:
        """Nothing to learn: the order of arrival is all that counts."""

    def evictions(self) -> tuple[SessionId, ...]:
        evicting, self._evicting = self._evicting, ()
        return evicting

    def prices(self) -> Prices:
        return Prices()

    def _choose(self, now: float) -> Iterator[BatchMember]:
        """Members in the order of arrival, within the limits of a batch; who enters the cache waits for his turn."""
        tokens, prefill = self._limits.max_batch_tokens, self._limits.max_prefill_tokens
        room, cache_full = self._most_members(), False
        for request in self._waiting.values():
            if request.session_id not in self._residency.sessions:
                cache_full = cache_full or not self._residency.enter(request, now, self._waiting)
                if cache_full:
                    continue
            member = fit(request, request.num_draft_tokens, tokens, prefill) if room else None
            if member is None:
                return
            room -= 1
            tokens -= member.num_new_tokens
            prefill -= member.num_prefill_tokens
            yield member

    def _most_members(self) -> int:
        return self._limits.max_batch_requests

    @property
    def _first_arrival(self) -> float:
        """When the oldest waiting request came; inf: none waits."""
        return next((request.arrival for request in self._waiting.values()), inf)

    def _take(self, member: BatchMember) -> None:
        """Remove a member's request from the queue, or note its progress."""
        request = member.request
        if member.completes:
            del self._waiting[request.session_id]
        else:
            cached = request.num_cached_tokens + member.num_prefill_tokens
            self._waiting[request.session_id] = replace(request, num_cached_tokens=cached)


def fit(request: VerificationRequest, num_draft_tokens: int, tokens: int, prefill: int) -> BatchMember | None:
    """As much of a request as fits into `tokens` positions, `prefill` of them of prompts; None: nothing.

    Of its draft, the first `num_draft_tokens` are to be verified.
    """
    needed = request.num_history_tokens - 1 - request.num_cached_tokens
    if needed <= prefill and needed < tokens:
        room = tokens - needed - 1
        return BatchMember(request, needed, num_draft_tokens if num_draft_tokens < room else room)
    chunk = min(needed, prefill, tokens)
    return BatchMember(request, chunk, None) if chunk > 0 else None
