"""What a simulation saw, in the terms of `metrics.py`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from wisp.metrics import (
    DraftingSummary,
    ServerCost,
    SessionOutcome,
    attainment,
    attainment_by_class,
    goodput,
    summarise_drafting,
    verification_interference,
    within_capacity,
)
from wisp.policy.batch_time import BatchTime
from wisp.policy.session import RoundRecord, Session
from wisp.types import SLO, Batch

UNLIMITED = SLO("none", 1e-9, float("inf"))
"""Stands for the class of sessions that have none."""


@dataclass(frozen=True, slots=True)
class Report:
    """One run; rates and times are of the judged window, attainment and drafting of the sessions offered in it."""

    num_sessions: int
    num_unfinished: int
    """Refused or cut off."""
    attainment: float
    attainment_by_class: dict[str, float]
    goodput: float
    """In-time tokens per second."""
    tokens_per_s: float
    rounds_per_s: float
    batches_per_s: float
    requests_per_batch: float
    utilisation: float
    """Share of the time that the engine is busy."""
    mean_queue_time: float
    p95_queue_time: float
    mean_interference: float
    mean_first_token_time: float
    p95_first_token_time: float
    cost: ServerCost
    drafting: DraftingSummary
    num_events: int
    virtual_time: float

    def passes(self, level: float = 0.95) -> bool:
        """Whether this load is served."""
        return within_capacity(self.attainment, self.attainment_by_class, level)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ratios = {
            "positions_per_token": self.cost.positions_per_token,
            "engine_time_per_token": self.cost.engine_time_per_token,
            "accepted_share": self.drafting.accepted_share,
            "waste_ratio": self.drafting.waste_ratio,
        }
        return {**asdict(self), **ratios}


@dataclass(slots=True)
class Observer:
    """Watches the server's batches and the devices' sessions."""

    batch_time: BatchTime
    start: float
    end: float
    """Of the judged window."""
    queue_times: list[float] = field(default_factory=list, init=False)
    """Of every verified request in the window, in the order of their batches."""
    interference: list[float] = field(default_factory=list, init=False)
    sessions: list[SessionOutcome] = field(default_factory=list, init=False)
    records: list[RoundRecord] = field(default_factory=list, init=False)
    num_batches: int = field(default=0, init=False)
    num_positions: int = field(default=0, init=False)
    engine_time: float = field(default=0.0, init=False)

    def on_batch(self, batch: Batch, started: float, elapsed: float) -> None:
        """Take a batch that is done."""
        if not self.start <= started < self.end:
            return
        self.num_batches += 1
        self.num_positions += batch.num_new_tokens
        self.engine_time += elapsed
        self.queue_times += [started - member.request.arrival for member in batch.members if member.completes]
        self.interference += verification_interference(batch, self.batch_time)

    def judges(self, offered: float) -> bool:
        """Whether a session that is offered then counts."""
        return self.start <= offered < self.end

    def on_session(self, session: Session, *, finished: bool) -> None:
        """Take a session that is over, or cut off."""
        slo = session.slo or UNLIMITED
        startup = session.settings.startup_time
        self.sessions.append(SessionOutcome(slo, session.started, session.token_times, finished, startup))
        if self.judges(session.started):
            self.records += session.records

    def report(self, num_events: int, now: float) -> Report:
        """Add it all up."""
        judged = [session for session in self.sessions if self.judges(session.offered)]
        first_token_times = [session.token_times[0] - session.offered for session in judged if session.token_times]
        num_tokens = sum(self.start <= time < self.end for session in self.sessions for time in session.token_times)
        length = self.end - self.start
        num_rounds = len(self.queue_times)
        return Report(
            num_sessions=len(judged),
            num_unfinished=sum(not session.finished for session in judged),
            attainment=attainment(judged),
            attainment_by_class=attainment_by_class(judged),
            goodput=goodput(self.sessions, self.start, self.end),
            tokens_per_s=num_tokens / length,
            rounds_per_s=num_rounds / length,
            batches_per_s=self.num_batches / length,
            requests_per_batch=num_rounds / self.num_batches if self.num_batches else 0.0,
            utilisation=self.engine_time / length,
            mean_queue_time=_mean(self.queue_times),
            p95_queue_time=_p95(self.queue_times),
            mean_interference=_mean(self.interference),
            mean_first_token_time=_mean(first_token_times),
            p95_first_token_time=_p95(first_token_times),
            cost=ServerCost(self.num_positions, self.engine_time, num_tokens),
            drafting=summarise_drafting(self.records),
            num_events=num_events,
            virtual_time=now,
        )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _p95(values: list[float]) -> float:
    return float(np.percentile(values, 95)) if values else 0.0
