"""What a simulation saw, in the terms of `metrics.py`.

Judged are the sessions offered in a window of time, and of those offered before it the ones that it never saw end: a
device whose session drags on offers no other, and a server that is stuck would be judged by nobody.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
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
from wisp.policy.batch_time import BatchShape, BatchTime
from wisp.policy.session import Session
from wisp.types import SLO, Batch

UNLIMITED = SLO("none", 1e-9, float("inf"))
"""Stands for the class of sessions that have none."""


@dataclass(frozen=True, slots=True)
class Report:
    """One run; rates and times are of the judged window, attainment and drafting of the sessions judged in it."""

    num_sessions: int
    num_unfinished: int
    """Refused or cut off."""
    num_abandoned: int
    """Given up by their users while the device was away; not judged."""
    num_resumed: int
    """Times that a judged session was opened again, after the loss of its verifier or its connection."""
    attainment: float
    attainment_by_class: dict[str, float]
    goodput: float
    """In-time tokens per second."""
    tokens_per_s: float
    rounds_per_s: float
    batches_per_s: float
    requests_per_batch: float
    utilisation: float
    """Share of the time that the engines are busy."""
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
class Seen:
    """What was seen of a run, or of a part of it."""

    start: float
    end: float
    """Of the judged window."""
    num_abandoned: int = 0
    num_resumed: int = 0
    judged: list[SessionOutcome] = field(default_factory=list)
    num_missed: int = 0
    """Of those judged, so far."""
    queue_times: array[float] = field(default_factory=lambda: array("d"))
    """Of every verified request in the window, in the order of their batches."""
    interference: array[float] = field(default_factory=lambda: array("d"))
    sessions: list[SessionOutcome] = field(default_factory=list)
    drafting: DraftingSummary = field(default_factory=lambda: summarise_drafting(()))
    num_batches: int = 0
    num_positions: int = 0
    engine_time: float = 0.0

    def add(self, other: Seen) -> None:
        """Take in what was seen of another part."""
        self.num_abandoned += other.num_abandoned
        self.num_resumed += other.num_resumed
        self.judged += other.judged
        self.num_missed += other.num_missed
        self.queue_times += other.queue_times
        self.interference += other.interference
        self.sessions += other.sessions
        self.drafting += other.drafting
        self.num_batches += other.num_batches
        self.num_positions += other.num_positions
        self.engine_time += other.engine_time

    def report(self, num_verifiers: int, num_events: int, now: float) -> Report:
        """Add it all up."""
        judged = self.judged
        first_token_times = [session.token_times[0] - session.offered for session in judged if session.token_times]
        num_tokens = sum(self._num_in_window(session.token_times) for session in self.sessions)
        length = self.end - self.start
        num_rounds = len(self.queue_times)
        return Report(
            num_sessions=len(judged),
            num_unfinished=sum(not session.finished for session in judged),
            num_abandoned=self.num_abandoned,
            num_resumed=self.num_resumed,
            attainment=attainment(judged),
            attainment_by_class=attainment_by_class(judged),
            goodput=goodput(self.sessions, self.start, self.end),
            tokens_per_s=num_tokens / length,
            rounds_per_s=num_rounds / length,
            batches_per_s=self.num_batches / length,
            requests_per_batch=num_rounds / self.num_batches if self.num_batches else 0.0,
            utilisation=self.engine_time / (length * num_verifiers),
            mean_queue_time=_mean(self.queue_times),
            p95_queue_time=_p95(self.queue_times),
            mean_interference=_mean(self.interference),
            mean_first_token_time=_mean(first_token_times),
            p95_first_token_time=_p95(first_token_times),
            cost=ServerCost(self.num_positions, self.engine_time, num_tokens),
            drafting=self.drafting,
            num_events=num_events,
            virtual_time=now,
        )

    def _num_in_window(self, times: Sequence[float]) -> int:
        return bisect_left(times, self.end) - bisect_left(times, self.start)


class Observer:
    """Watches the server's batches and the devices' sessions."""

    __slots__ = ("_alone", "batch_time", "judges_under_way", "seen")

    def __init__(self, batch_time: BatchTime, start: float, end: float, *, judges_under_way: bool = False) -> None:
        """Sessions are judged that are offered from `start` to `end`, seconds, and those that are under way at its end.

        With `judges_under_way` those that are so at its start are as well.
        """
        self.batch_time, self.judges_under_way = batch_time, judges_under_way
        self.seen = Seen(start, end)
        # Asked for every member of every batch, and answered alike for most of them.
        self._alone = lru_cache(maxsize=1 << 16)(
            lambda num_new, num_cached: batch_time(BatchShape().plus(num_new, num_cached))
        )

    def on_batch(self, batch: Batch, started: float, elapsed: float) -> None:
        """Take a batch that is done."""
        seen = self.seen
        if not seen.start <= started < seen.end:
            return
        shape = BatchShape.of(batch)
        seen.num_batches += 1
        seen.num_positions += shape.num_new
        seen.engine_time += elapsed
        seen.queue_times.extend(
            [started - one.request.arrival for one in batch.members if one.num_verified is not None]
        )
        seen.interference.extend(verification_interference(batch, self.batch_time(shape), self._alone))

    def judges(self, offered: float, ended: float) -> bool:
        """Whether a session counts that was offered and ended, or was cut off, at these times."""
        start, end = self.seen.start, self.seen.end
        return offered < end and (offered >= start or ended >= (start if self.judges_under_way else end))

    def on_session(self, session: Session, now: float, *, finished: bool, abandoned: bool = False) -> None:
        """Take a session that is over, or cut off; one that its user gave up is not judged, but its tokens count."""
        seen = self.seen
        slo = session.slo or UNLIMITED
        startup = session.settings.startup_time
        token_times = array("d", session.token_times)
        outcome = SessionOutcome(slo, session.started, token_times, finished, startup)
        seen.sessions.append(outcome)
        if not self.judges(session.started, now):
            return
        seen.drafting += summarise_drafting(session.records)
        seen.num_resumed += session.epoch
        if abandoned:
            seen.num_abandoned += 1
        else:
            seen.judged.append(outcome)
            seen.num_missed += not outcome.attained


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _p95(values: Sequence[float]) -> float:
    return float(np.percentile(values, 95)) if values else 0.0
