"""The requests that wait, in the orders that a scheduler asks for: by arrival, by deadline, by density.

They are kept as requests come and go, so that a batch costs what it takes, not what waits. Equals leave in the order of
their arrival.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from math import inf

from wisp.types import SessionId, VerificationRequest

_Entry = tuple[float, int, SessionId]


class Order:
    """Sessions in the order of a key, and of their arrival among equals."""

    def __init__(self) -> None:
        self._sorted: list[_Entry] = []
        """Those from `_next` on were not drained; what is not in `_current` any more is skipped."""
        self._next = 0
        self._current: dict[SessionId, _Entry] = {}
        self._out: list[_Entry] = []
        """Drained, and not put back yet."""

    def put(self, session_id: SessionId, key: float, place: int) -> None:
        """Add a session, or move it; not between `drain` and `put_back`."""
        entry = self._current[session_id] = (key, place, session_id)
        insort(self._sorted, entry, self._next)
        if len(self._sorted) > 2 * len(self._current) + 64:
            self.put_back()

    def discard(self, session_id: SessionId) -> None:
        """Take a session out."""
        self._current.pop(session_id, None)

    @property
    def first_key(self) -> float:
        """The smallest key of those that were not drained; inf: none."""
        entries, current = self._sorted, self._current
        while self._next < len(entries):
            first = entries[self._next]
            if current.get(first[2]) is first:
                return first[0]
            self._next += 1
        return inf

    def drain(self, until: float = inf) -> Iterator[SessionId]:
        """Sessions with keys up to `until`, in order; each comes once, until `put_back`."""
        entries, current, out = self._sorted, self._current, self._out
        while self._next < len(entries):
            entry = entries[self._next]
            session_id = entry[2]
            if current.get(session_id) is entry:
                if entry[0] > until:
                    return
                out.append(entry)
                self._next += 1
                yield session_id
            else:
                self._next += 1

    def put_back(self) -> None:
        """Return what was drained, as far as it still waits; tidy up."""
        entries, current = self._sorted, self._current
        entries[: self._next] = [entry for entry in self._out if current.get(entry[2]) is entry]
        self._next = 0
        self._out.clear()
        if len(entries) > 2 * len(current) + 64:
            entries[:] = sorted(current.values())


class WaitingRequests:
    """At most one request per session, with its density (committed tokens per second of engine time), if it is given one."""

    def __init__(self) -> None:
        self.requests: dict[SessionId, VerificationRequest] = {}
        """In the order of arrival."""
        self.num_tokens = 0
        """Positions that they need, all together."""
        self.num_prefill_tokens = 0
        """Of these, those of prompts, or of what else of a history has to be computed first."""
        self.late: dict[SessionId, None] = {}
        """The best-effort lane: those that cannot keep their deadline any more, in the order in which this was seen."""
        self.by_deadline = Order()
        self.by_density = Order()
        self._places: dict[SessionId, int] = {}
        """Among equals, of those with a density."""
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, request: VerificationRequest, density: float | None, latest_start: float) -> None:
        """Queue a request; a newer one of a session takes the older one's place away."""
        session_id = request.session_id
        if session_id in self.requests:
            self.remove(session_id)
        self._arrivals += 1
        if density is not None:
            self._places[session_id] = self._arrivals
        self.by_deadline.put(session_id, latest_start, self._arrivals)
        self._set(request, density)

    def update(self, request: VerificationRequest, density: float | None) -> None:
        """Note that more, or less, of a request's history is cached; it keeps its place."""
        self._uncount(self.requests[request.session_id])
        self._set(request, density)

    def remove(self, session_id: SessionId) -> None:
        """Take a session's request out, if it has one."""
        request = self.requests.pop(session_id, None)
        if request is not None:
            self._uncount(request)
            self.by_deadline.discard(session_id)
            if session_id in self._places:
                del self._places[session_id]
                self.by_density.discard(session_id)
            if self.late:
                self.late.pop(session_id, None)

    def give_up(self, session_id: SessionId) -> None:
        """Move a request to the best-effort lane."""
        self.by_deadline.discard(session_id)
        self.by_density.discard(session_id)
        self.late[session_id] = None

    def put_back(self) -> None:
        """Return to their orders what was drained and still waits."""
        self.by_deadline.put_back()
        self.by_density.put_back()

    def _set(self, request: VerificationRequest, density: float | None) -> None:
        self.requests[request.session_id] = request
        self.num_tokens += _num_tokens(request)
        self.num_prefill_tokens += request.num_prefill_tokens
        if density is not None and request.session_id not in self.late:
            self.by_density.put(request.session_id, -density, self._places[request.session_id])

    def _uncount(self, request: VerificationRequest) -> None:
        self.num_tokens -= _num_tokens(request)
        self.num_prefill_tokens -= request.num_prefill_tokens


def _num_tokens(request: VerificationRequest) -> int:
    return request.num_history_tokens - request.num_cached_tokens + request.num_draft_tokens
