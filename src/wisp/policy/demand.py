"""What the sessions that were admitted need of the engine, and which of them are still at work.

    needed rate of a session = L / (first-token limit + startup + L / s)        tokens per second

of speed s, where answers are L tokens long on average: what keeps its last deadline, d_L = t_first + startup + L / s, if
its first token comes as late as it may. Before any session has ended L is not known, and the rate is s.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import takewhile
from math import inf

from wisp.policy.residency import GONE_AFTER
from wisp.types import SLO, STARTUP_TIME, SessionDemand, SessionId

_NEWEST = 0.02
"""Weight of the newest answer in their mean length."""


class SessionDemands:
    """The admitted sessions; `waits` tells whether a request of one is waiting: its device need not be heard of then."""

    def __init__(self, waits: Callable[[SessionId], bool]) -> None:
        self.sessions: dict[SessionId, SessionDemand] = {}
        self._waits = waits
        self._heard: OrderedDict[SessionId, float] = OrderedDict()
        """When each last asked for something, or was served; the longest silent first."""
        self._histories: dict[SessionId, int] = {}
        """Tokens of each when it last asked."""
        self._classes: Counter[SLO | None] = Counter()
        """How many sessions there are of each."""
        self._mean_length = inf

    def admit(self, session: SessionDemand, now: float) -> None:
        """Count a session in; again, with what it needs now, if it is known already."""
        self._forget(session.session_id)
        self.sessions[session.session_id] = session
        self._classes[session.slo] += 1
        self.hear(session.session_id, now)

    def hear(self, session_id: SessionId, now: float) -> None:
        """Note that a session is at work."""
        self._heard[session_id] = now
        self._heard.move_to_end(session_id)

    def ask(self, session_id: SessionId, num_history_tokens: int, now: float) -> None:
        """Note that a session asks for a round."""
        self._histories[session_id] = num_history_tokens
        self.hear(session_id, now)

    def release(self, session_id: SessionId) -> None:
        """Forget a session that ended; its answer's length counts."""
        session, history = self.sessions.get(session_id), self._histories.pop(session_id, None)
        if session is not None and history is not None:
            self._learn(history + 1.0 - session.num_history_tokens)
        self._forget(session_id)
        self._heard.pop(session_id, None)

    def present(self, session_id: SessionId, now: float) -> bool:
        """Whether a session is at work: it waits here, or was heard of lately. The others' devices are gone."""
        return now - self._heard[session_id] <= GONE_AFTER or self._waits(session_id)

    def gone(self, now: float) -> list[SessionDemand]:
        """Those that are not present."""
        silent = takewhile(lambda one: now - self._heard[one] > GONE_AFTER, self._heard)
        return [self.sessions[one] for one in silent if one in self.sessions and not self._waits(one)]

    def needed_rate(self, another: SessionDemand, gone: list[SessionDemand]) -> float:
        """Tokens per second that all need together, without those that are gone, with one more."""
        classes = self._classes + Counter({another.slo: 1}) - Counter(one.slo for one in gone)
        return sum(number * self._rate(slo) for slo, number in classes.items())

    def _rate(self, slo: SLO | None) -> float:
        if slo is None:
            return 0.0
        return 1.0 / (1.0 / slo.tokens_per_s + (slo.first_token_s + STARTUP_TIME) / self._mean_length)

    def _learn(self, length: float) -> None:
        length = max(length, 1.0)
        known = self._mean_length < inf
        self._mean_length = self._mean_length + _NEWEST * (length - self._mean_length) if known else length

    def _forget(self, session_id: SessionId) -> None:
        session = self.sessions.pop(session_id, None)
        if session is not None:
            self._classes[session.slo] -= 1
