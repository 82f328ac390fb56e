"""What one point of a comparison shows: a system under the load of N devices, in the terms of `metrics.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from wisp.bench.live.devices import OfferedSession
from wisp.errors import FormatError
from wisp.formats.batch_log import LoggedBatch
from wisp.metrics import (
    ServerCost,
    SessionOutcome,
    attainment,
    attainment_by_class,
    goodput,
    summarise_drafting,
    within_capacity,
)
from wisp.policy.batch_time import BatchShape, BatchTime


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is judged, by the clock that driver and server share; seconds.

    Judged are the sessions offered in it, and those that it finds under way: a device whose session drags on offers no
    other, and a server that is stuck would be judged by nobody.
    """

    start: float
    end: float

    def judges(self, one: OfferedSession) -> bool:
        under_way = one.offered < self.start and (one.ended is None or one.ended >= self.start)
        return under_way or self.holds(one.offered)

    def holds(self, time: float) -> bool:
        return self.start <= time < self.end

    @property
    def length(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a time in seconds; all 0 where there was nothing to measure."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles:
        given = list(values)
        return cls(*(float(value) for value in np.percentile(given, [50, 95, 99]))) if given else cls(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class DriverLoad:
    """What driving the devices cost this process."""

    cpu_s: float
    """In the window."""
    lag_p95: float
    """By how many seconds a sleep on its event loop ends too late: emulated devices are that much slower than set."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Rates and times are of the judged window; attainment, drafting and first tokens of the sessions judged in it."""

    num_sessions: int
    num_unfinished: int
    """Refused, failed or cut off at the end."""
    num_refused: int
    num_diverged: int
    """Whose text is not the recorded one: nothing was drafted from there on."""
    failures: dict[str, int]
    """By the name of the error, refusals included."""
    attainment: float
    attainment_by_class: dict[str, float]
    goodput: float
    """In-time tokens per second, of all devices."""
    tokens_per_s: float
    first_token_s: Percentiles
    token_s: Percentiles
    """Seconds per output token after the first, of each finished session."""
    accepted_share: float
    waste_ratio: float
    draft_length: float
    """Drafted tokens per round that drafted."""
    requests_per_batch: float
    utilisation: float
    """Share of the time in which the engine is busy."""
    between_s: float
    """Mean time from the end of a batch to the start of the next in which the loop did not wait: the server's own work."""
    queue_s: Percentiles
    interference_s: float | None
    """Mean V(B) - V({j}) of the verified requests; None: no batch times are known."""
    positions_per_token: float
    engine_time_per_token: float
    server_cpu: float
    """CPU seconds per second, of all threads of its process."""
    driver_cpu: float
    driver_lag_p95: float
    batch_time_ratio: float | None
    """Time that all batches took over what the batch times say; None: no batch times are known."""

    def passes(self, level: float) -> bool:
        """Whether this load is served; nobody judged, nobody served."""
        return self.num_sessions > 0 and within_capacity(self.attainment, self.attainment_by_class, level)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Measures:
        """What `as_json` gave. Raises FormatError."""
        try:
            given = {field.name: content[field.name] for field in fields(cls)}
            for name in ("first_token_s", "token_s", "queue_s"):
                given[name] = Percentiles(**given[name])
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise FormatError(f"not the measures of a point: {error!r}") from error


def measure(
    offered: Sequence[OfferedSession],
    batches: Sequence[LoggedBatch],
    window: Window,
    driver: DriverLoad,
    batch_time: BatchTime | None,
) -> Measures:
    """Add up a point. `batch_time` is what a batch is expected to last, for interference."""
    judged = [one for one in offered if window.judges(one)]
    outcomes = [_outcome(one) for one in judged]
    failures = [one.failure for one in judged if one.failure is not None]
    drafting = summarise_drafting(record for one in judged for record in one.session.records)
    num_drafting = sum(record.num_drafted > 0 for one in judged for record in one.session.records)
    num_tokens = sum(window.holds(time) for one in offered for time in one.session.token_times)
    logged = [batch for batch in batches if window.holds(batch.started)]
    waits = [batch.started - m.arrival for batch in logged for m in batch.members if m.completes]
    engine_time = sum(batch.elapsed for batch in logged)
    cost = ServerCost(sum(batch.shape.num_new for batch in logged), engine_time, num_tokens)
    return Measures(
        num_sessions=len(judged),
        num_unfinished=sum(not one.finished for one in judged),
        num_refused=failures.count("ServerBusy"),
        num_diverged=sum(one.diverged for one in judged),
        failures={name: failures.count(name) for name in sorted(set(failures))},
        attainment=attainment(outcomes),
        attainment_by_class=attainment_by_class(outcomes),
        goodput=goodput(map(_outcome, offered), window.start, window.end),
        tokens_per_s=num_tokens / window.length,
        first_token_s=Percentiles.of(one.token_times[0] - one.offered for one in outcomes if one.token_times),
        token_s=Percentiles.of(_token_time(one) for one in outcomes if one.finished and len(one.token_times) > 1),
        accepted_share=drafting.accepted_share,
        waste_ratio=drafting.waste_ratio,
        draft_length=drafting.num_drafted / num_drafting if num_drafting else 0.0,
        requests_per_batch=len(waits) / len(logged) if logged else 0.0,
        utilisation=engine_time / window.length,
        between_s=_mean_between(logged),
        queue_s=Percentiles.of(waits),
        interference_s=None if batch_time is None else _mean_interference(logged, batch_time),
        positions_per_token=cost.positions_per_token,
        engine_time_per_token=cost.engine_time_per_token,
        server_cpu=_cpu_share(logged),
        driver_cpu=driver.cpu_s / window.length,
        driver_lag_p95=driver.lag_p95,
        batch_time_ratio=None if batch_time is None else _batch_time_ratio(logged, batch_time),
    )


def _outcome(one: OfferedSession) -> SessionOutcome:
    session = one.session
    if session.slo is None:
        raise AssertionError("every session of a benchmark has an SLO class")
    return SessionOutcome(session.slo, one.offered, session.token_times, one.finished, session.settings.startup_time)


def _token_time(outcome: SessionOutcome) -> float:
    times = outcome.token_times
    return (times[-1] - times[0]) / (len(times) - 1)


def _mean_interference(batches: Sequence[LoggedBatch], batch_time: BatchTime) -> float:
    """V(B) - V({j}) over the verified requests j of all batches B."""
    total, num_requests = 0.0, 0
    for batch in batches:
        together = batch_time(batch.shape)
        alone = [batch_time(BatchShape.of_members([(m.num_new, m.num_cached)])) for m in batch.members if m.completes]
        total += sum(together - time for time in alone)
        num_requests += len(alone)
    return total / num_requests if num_requests else 0.0


def _mean_between(batches: Sequence[LoggedBatch]) -> float:
    """Seconds; 0 where there were fewer than two batches."""
    between = [later.started - one.started - one.elapsed - later.waited for one, later in pairwise(batches)]
    return fmean(between) if between else 0.0


def _batch_time_ratio(batches: Sequence[LoggedBatch], batch_time: BatchTime) -> float | None:
    expected = sum(batch_time(batch.shape) for batch in batches)
    return sum(batch.elapsed for batch in batches) / expected if expected else None


def _cpu_share(batches: Sequence[LoggedBatch]) -> float:
    """CPU seconds per second between the first and the last batch; 0 where there were fewer than two."""
    if len(batches) < 2:
        return 0.0
    first, last = batches[0], batches[-1]
    length = last.started + last.elapsed - first.started - first.elapsed
    return (last.cpu_s - first.cpu_s) / length if length > 0.0 else 0.0
