"""What the sessions that were admitted need of the engine, and which of them are still at work.

    needed rate of a session = L / (w + startup + L / s)        tokens per second

of speed s, where answers are L tokens long on average: what keeps its last deadline, d_L = t_first + startup + L / s, if
its first token comes after w, half of the limit of its class. Before some sessions have ended L is not known, and the rate is s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import takewhile
from math import inf

from wisp.policy.residency import GONE_AFTER
from wisp.types import SLO, STARTUP_TIME, SessionDemand, SessionId, VerificationRequest

_FIRST_TOKEN_SHARE = 0.5
"""Of the first token's time limit, that sessions are expected to wait for it where the engine is busy."""
_NEWEST = 0.02
"""Weight of the newest answer in their mean length."""
_ENOUGH = 16
"""Answers from which on the mean is believed: short ones end first."""

Waits = Callable[[SessionId], bool]


class SessionDemands:
    """The admitted sessions; `waits` tells whether a request of one is waiting: its device need not be heard of then."""

    def __init__(self) -> None:
        self.sessions: dict[SessionId, SessionDemand] = {}
        self._heard: dict[SessionId, float] = {}
        """When each last asked for something, or was served; the longest silent first."""
        self._histories: dict[SessionId, int] = {}
        """Tokens of each when it last asked."""
        self._prefilled: Counter[SessionId] = Counter()
        """Positions that its prompt took, and what had to be computed again."""
        self._classes: Counter[SLO | None] = Counter()
        """How many sessions there are of each."""
        self._num_ended = 0
        self._mean_length = self._mean_prompt = self._mean_prefilled = 0.0
        """Of the answers of those, of their prompts, and of these as far as they were not cached."""

    def admit(self, session: SessionDemand, now: float) -> None:
        """Count a session in; again, with what it needs now, if it is known already."""
        self._forget(session.session_id)
        self.sessions[session.session_id] = session
        self._classes[session.slo] += 1
        self.hear(session.session_id, now)

    def hear(self, session_id: SessionId, now: float) -> None:
        """Note that a session is at work."""
        self._heard.pop(session_id, None)
        self._heard[session_id] = now

    def ask(self, request: VerificationRequest, now: float) -> None:
        """Note that a session asks for a round."""
        self._histories[request.session_id] = request.num_history_tokens
        num_prefill = request.num_prefill_tokens
        if num_prefill:
            self._prefilled[request.session_id] += num_prefill
        self.hear(request.session_id, now)

    def release(self, session_id: SessionId) -> None:
        """Forget a session that ended; what it took counts."""
        session, history = self.sessions.get(session_id), self._histories.pop(session_id, None)
        prefilled = self._prefilled.pop(session_id, 0)
        if session is not None and history is not None:
            self._learn(history + 1.0 - session.num_history_tokens, session.num_history_tokens, prefilled)
        self._forget(session_id)
        self._heard.pop(session_id, None)

    def present(self, session_id: SessionId, now: float, waits: Waits) -> bool:
        """Whether a session is at work: it waits here, or was heard of lately. The others' devices are gone."""
        return now - self._heard[session_id] <= GONE_AFTER or waits(session_id)

    def gone(self, now: float, waits: Waits) -> list[SessionDemand]:
        """Those that are not present."""
        silent = takewhile(lambda one: now - self._heard[one] > GONE_AFTER, self._heard)
        return [self.sessions[one] for one in silent if one in self.sessions and not waits(one)]

    def needed_rate(self, another: SessionDemand, gone: list[SessionDemand]) -> float:
        """Tokens per second that all need together, without those that are gone, with one more."""
        classes = self._classes.copy()
        classes[another.slo] += 1
        for one in gone:
            classes[one.slo] -= 1
        return sum([number * self._rate(slo) for slo, number in classes.items() if number])

    @property
    def prefill_per_token(self) -> float | None:
        """Positions of prompts per token of their answers; None: not known yet."""
        return self._mean_prefilled / self._mean_length if self._num_ended >= _ENOUGH else None

    def expected_prefill(self, session: SessionDemand) -> float:
        """Positions that a session's history is going to take, if as much of it is cached as of others' lately."""
        if self._num_ended < _ENOUGH:
            return float(session.num_history_tokens)
        return session.num_history_tokens * min(1.0, self._mean_prefilled / self._mean_prompt)

    @property
    def fastest(self) -> float:
        """The highest speed among them, tokens per second; 0: none has one."""
        return max(
            (slo.tokens_per_s for slo, number in self._classes.items() if slo is not None and number), default=0.0
        )

    def _rate(self, slo: SLO | None) -> float:
        if slo is None:
            return 0.0
        length = self._mean_length if self._num_ended >= _ENOUGH else inf
        return 1.0 / (1.0 / slo.tokens_per_s + (_FIRST_TOKEN_SHARE * slo.first_token_s + STARTUP_TIME) / length)

    def _learn(self, length: float, num_prompt: int, num_prefilled: int) -> None:
        self._num_ended += 1
        weight = max(_NEWEST, 1.0 / self._num_ended)
        self._mean_length += weight * (max(length, 1.0) - self._mean_length)
        self._mean_prompt += weight * (num_prompt - self._mean_prompt)
        self._mean_prefilled += weight * (num_prefilled - self._mean_prefilled)

    def _forget(self, session_id: SessionId) -> None:
        session = self.sessions.pop(session_id, None)
        if session is not None:
            self._classes[session.slo] -= 1
