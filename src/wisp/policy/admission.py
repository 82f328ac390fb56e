"""Who may start: a session is refused where those there, and it, could not be served as they were promised.

    needed rate of all (demand.py) * seconds per token  <=  max_load
    wait for room in the KV cache, then for the prompts before it and its own  <=  max_first_wait * first token's limit

The seconds of a token are those in batches that are filled as far as the fastest session can wait, time and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from wisp.policy.batch_time import BatchTime
from wisp.policy.demand import SessionDemands
from wisp.policy.prices import FleetMeter
from wisp.policy.residency import KVResidency
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.typical_round import largest_batch
from wisp.policy.waiting import WaitingRequests
from wisp.types import SessionDemand, SessionId, VerificationRequest


@dataclass(slots=True)
class Admission:
    """Looks at what the scheduler keeps; changes nothing."""

    limits: SchedulerLimits
    max_load: float
    max_first_wait: float
    demands: SessionDemands
    residency: KVResidency
    meter: FleetMeter
    waiting: WaitingRequests
    """For a batch."""
    entering: Mapping[SessionId, VerificationRequest]
    """Requests that wait for room in the KV cache."""
    _per_token: tuple[tuple[float | None, float], float] | None = field(default=None, init=False)
    """See _time_per_token, with what it was worked out from; None: batches have run since."""

    def objection(self, session: SessionDemand, batch_time: BatchTime, now: float) -> str | None:
        """Why a session may not start, by what batches are estimated to take; the first one always may."""
        num_sessions = len(self.demands.sessions)
        if num_sessions >= self.limits.max_sessions:
            return f"all {self.limits.max_sessions} sessions are taken"
        if num_sessions == 0:
            return None
        gone = self.demands.gone(now, self.waits)
        if self.demands.needed_rate(session, gone) * self._time_per_token(batch_time) > self.max_load:
            return f"the {num_sessions - len(gone)} sessions that are under way take all of its time"
        limit = self.max_first_wait * _first_token_s(session)
        if (entry := self._entry_wait(session, now)) > limit:
            return f"its KV cache is full, and others of the {num_sessions} sessions wait for room in it"
        if entry + self._prompt_wait(session, batch_time) > limit:
            return f"others of the {num_sessions} sessions wait for their prompts to be read"
        return None

    def batch_ran(self) -> None:
        """Note that batches are known better now."""
        self._per_token = None

    def waits(self, session_id: SessionId) -> bool:
        """Whether a request of a session waits, for a batch or for room in the cache."""
        return session_id in self.waiting.requests or session_id in self.entering

    def _entry_wait(self, session: SessionDemand, now: float) -> float:
        """Seconds until a new session finds room in the KV cache, after those that wait for it already."""
        sessions = self.demands.sessions
        inside = self.residency.sessions
        absent = [one for one in sessions if one not in inside]
        outside = [sessions[one].num_history_tokens for one in absent if self.demands.present(one, now, self.waits)]
        return self.residency.time_to_enter(session.num_history_tokens + sum(outside), now)

    def _prompt_wait(self, session: SessionDemand, batch_time: BatchTime) -> float:
        """Seconds that the prompts that wait take with this one, beside the rounds that go with them."""
        typical = self.meter.lasting(self.demands.prefill_per_token)
        if not typical.num_prefill:
            return 0.0
        num_rounds = (self.waiting.num_prefill_tokens + self.demands.expected_prefill(session)) / typical.num_prefill
        return num_rounds * typical.num_committed * self._time_per_token(batch_time)

    def _time_per_token(self, batch_time: BatchTime) -> float:
        """Seconds that a committed token takes in batches that are filled as far as the fastest can wait, and between them."""
        known = self.demands.prefill_per_token, self.demands.fastest
        if self._per_token is None or self._per_token[0] != known:
            self._per_token = known, self._work_out_time_per_token(*known, batch_time)
        return self._per_token[1]

    def _work_out_time_per_token(self, prefill_per_token: float | None, fastest: float, batch_time: BatchTime) -> float:
        typical = self.meter.lasting(prefill_per_token)

        def time_of(size: int) -> float:
            return batch_time(typical.batch(size))

        size = largest_batch(typical.most(self.limits), typical.patience(fastest), time_of)
        elapsed = time_of(size) * (1.0 + self.meter.share_between)
        return elapsed / (size * typical.num_committed)


def _first_token_s(demand: SessionDemand) -> float:
    return demand.slo.first_token_s if demand.slo is not None else inf
