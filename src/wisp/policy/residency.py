"""Which sessions occupy the KV cache: who may enter, and who makes room.

    sum over sessions of max(occupied(cached), promised)  <=  capacity

A session enters when all that its request needs fits beside what is there and a reserve, in which those there grow;
nobody is evicted for its sake, unless he has been idle so long that he seems to be gone. Where growth exceeds the cache,
whoever entered last goes first. So whoever entered first runs to his end: sessions that take turns in a cache that is too
small for all of them would compute their histories again and again.

A session that a drafter beside the target drafts for has its tokens in that model's cache too: `drafter_share` is what a
token takes there over what it takes in the target; 0: that is memory of its own. Such a cache is given up with the session's
first round of plain decoding that is not drafted for.
"""

from __future__ import annotations

from collections.abc import Callable, Container, KeysView
from math import exp, inf

from wisp.types import BatchMember, SessionId, VerificationRequest

RESERVE = 0.02
"""Of the cache, kept free for growth when a session enters, where nothing else is asked for."""
GONE_AFTER = 10.0
"""Seconds without a request or a batch after which a session makes room for one that enters."""
_MEMORY = 10.0
"""Seconds after which an entry counts for 1/e in the rate of entries."""


class KVResidency:
    """Counts cached tokens; `occupied` says how much of `capacity_tokens` a session with so many of them takes."""

    def __init__(
        self,
        capacity_tokens: int,
        occupied: Callable[[int], int],
        reserve: float = RESERVE,
        drafter_share: float = 0.0,
    ) -> None:
        self._capacity = capacity_tokens
        self._entry_limit = (1.0 - reserve) * capacity_tokens
        self._occupied = occupied
        self._held: dict[SessionId, int] = {}
        """Occupied or promised, in the order in which sessions entered."""
        self.sessions: KeysView[SessionId] = self._held.keys()
        """Those that are in the cache."""
        self._promised: dict[SessionId, int] = {}
        self._active: dict[SessionId, float] = {}
        """When a session was last heard of, the longest idle first."""
        self._drafted_weight = 1.0 + drafter_share
        self._drafted: set[SessionId] = set()
        """Sessions with a drafter's cache."""
        self.drafts = False
        """Whether sessions that enter are drafted for."""
        self._total = 0
        self._evicted: list[SessionId] = []
        self._entered = 0.0
        """Tokens that entered lately, the older ones counting for less."""
        self._entered_at = 0.0

    def __contains__(self, session_id: SessionId) -> bool:
        return session_id in self._held

    def enter(self, request: VerificationRequest, now: float, waiting: Container[SessionId]) -> bool:
        """Let a request's session in if all it needs fits; sessions that seem gone, and do not wait, make room."""
        needed = self._taken(request.session_id, request.num_history_tokens + request.num_draft_tokens)
        while self._held and self._total + needed > self._entry_limit:
            if not self._evict_gone(now, waiting):
                return False
        self._promised[request.session_id] = needed
        self._hold(request.session_id, needed, now)
        self._entered = self._entered * self._fading(now) + needed
        self._entered_at = now
        return True

    def note(self, session_id: SessionId, num_cached_tokens: int, now: float) -> None:
        """A session was just active and has so much cached."""
        held, promised = self._taken(session_id, num_cached_tokens), self._promised.get(session_id, 0)
        if held or promised:
            self._hold(session_id, held if held > promised else promised, now)

    def holds_drafts(self, request: VerificationRequest) -> bool:
        """Whether the cache is large enough for a request's session in both models."""
        needed = self._occupied(request.num_history_tokens + request.num_draft_tokens)
        return self._drafted_weight * needed <= self._capacity

    def keep_drafts(self, session_id: SessionId, *, kept: bool) -> None:
        """Whether a session has a drafter's cache from now on."""
        if kept == (session_id in self._drafted) or self._drafted_weight == 1.0:
            return
        (self._drafted.add if kept else self._drafted.discard)(session_id)
        if session_id in self._held:
            change = self._drafted_weight if kept else 1.0 / self._drafted_weight
            self._promised[session_id] = round(self._promised.get(session_id, 0) * change)
            held = round(self._held[session_id] * change)
            self._total += held - self._held[session_id]
            self._held[session_id] = held

    def forget(self, session_id: SessionId) -> None:
        """A session has nothing cached any more."""
        self._drafted.discard(session_id)
        self._total -= self._held.pop(session_id, 0)
        self._promised.pop(session_id, None)
        self._active.pop(session_id, None)

    def make_room(self, members: list[BatchMember]) -> None:
        """Evict what has to go for `members` to grow; members who go themselves are taken out of the list."""
        excess = self._total + sum([self._growth(member) for member in members]) - self._capacity
        if excess <= 0:
            return
        by_name = {member.request.session_id: member for member in members}
        while excess > 0 and len(self._held) > 1:
            victim = next(reversed(self._held))
            excess -= self._held[victim]
            if victim in by_name:
                excess -= self._growth(by_name[victim])
                members.remove(by_name[victim])
            self._evict(victim)

    def take_evicted(self) -> tuple[SessionId, ...]:
        """Who was evicted since this was asked last."""
        evicted, self._evicted = tuple(self._evicted), []
        return evicted

    def next_gone(self, now: float) -> float:
        """When the longest idle session is going to count as gone; inf: it does already, or there is none."""
        gone = next(iter(self._active.values()), inf) + GONE_AFTER
        return gone if gone > now else inf

    def time_to_enter(self, num_tokens: int, now: float) -> float:
        """Seconds until sessions of so many tokens, all together, have entered: at the rate of late where it is full."""
        if self.drafts:
            num_tokens = round(num_tokens * self._drafted_weight)
        lacking = self._total + num_tokens - self._entry_limit
        if lacking <= 0.0:
            return 0.0
        return min(lacking, num_tokens) / max(self._entered * self._fading(now) / _MEMORY, 1e-9)

    def _fading(self, now: float) -> float:
        return exp(min(0.0, self._entered_at - now) / _MEMORY)

    def _hold(self, session_id: SessionId, num_tokens: int, now: float) -> None:
        self._total += num_tokens - self._held.get(session_id, 0)
        self._held[session_id] = num_tokens
        self._active.pop(session_id, None)
        self._active[session_id] = now

    def _taken(self, session_id: SessionId, num_tokens: int) -> int:
        occupied = self._occupied(num_tokens)
        return round(occupied * self._drafted_weight) if session_id in self._drafted else occupied

    def _growth(self, member: BatchMember) -> int:
        """What a member occupies after the batch, beyond what it holds already."""
        request, verified = member.request, member.num_verified
        after = request.num_cached_tokens + member.num_prefill_tokens + (0 if verified is None else 1 + verified)
        growth = self._taken(request.session_id, after) - self._held.get(request.session_id, 0)
        return growth if growth > 0 else 0

    def _evict_gone(self, now: float, waiting: Container[SessionId]) -> bool:
        for session_id, active in self._active.items():
            if now < active + GONE_AFTER:
                return False
            if session_id not in waiting:
                self._evict(session_id)
                return True
        return False

    def _evict(self, session_id: SessionId) -> None:
        self.forget(session_id)
        self._evicted.append(session_id)
