"""Which sessions occupy the KV cache, and which make room for a batch.

    sum over sessions of occupied(cached) + sum over the batch of growth  <=  capacity

Who goes first: the session that has been idle longest (its history lives on its device), then waiting ones that are not
in the batch, the latest first; at last members of the batch itself, from its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from wisp.types import BatchMember, SessionId, VerificationRequest


class KVResidency:
    """Counts cached tokens; `occupied` says how much of `capacity_tokens` a session with so many of them takes."""

    def __init__(self, capacity_tokens: int, occupied: Callable[[int], int]) -> None:
        self._capacity = capacity_tokens
        self._occupied = occupied
        self._resident: OrderedDict[SessionId, int] = OrderedDict()  # cached tokens, longest idle first
        self._total = 0

    def note(self, session_id: SessionId, num_cached_tokens: int) -> None:
        """A session was just active and has so much cached."""
        self.forget(session_id)
        if num_cached_tokens:
            self._resident[session_id] = num_cached_tokens
            self._total += self._occupied(num_cached_tokens)

    def forget(self, session_id: SessionId) -> None:
        """A session has nothing cached any more."""
        self._total -= self._occupied(self._resident.pop(session_id, 0))

    def make_room(
        self, members: list[BatchMember], waiting: OrderedDict[SessionId, VerificationRequest]
    ) -> tuple[SessionId, ...]:
        """Evict what has to go for `members` to fit; members that cannot fit are dropped from the end of the list."""
        excess = self._total + sum(self._growth(member) for member in members) - self._capacity
        if excess <= 0:
            return ()
        victims = self._victims({member.request.session_id for member in members}, waiting)
        evicted: list[SessionId] = []
        while members and excess > 0:
            victim = next(victims, None)
            if victim is None:
                last = members.pop()
                victim = last.request.session_id
                excess -= self._growth(last)
                if excess <= 0 or victim not in self._resident:
                    continue
            evicted.append(victim)
            excess -= self._occupied(self._resident[victim])
        for session_id in evicted:
            self.forget(session_id)
        return tuple(evicted)

    def _growth(self, member: BatchMember) -> int:
        request = member.request
        after = self._occupied(request.num_cached_tokens + member.num_new_tokens)
        return after - self._occupied(self._resident.get(request.session_id, 0))

    def _victims(
        self, chosen: set[SessionId], waiting: OrderedDict[SessionId, VerificationRequest]
    ) -> Iterator[SessionId]:
        yield from (one for one in self._resident if one not in chosen and one not in waiting)
        yield from (one for one in reversed(waiting) if one not in chosen and one in self._resident)
