"""What a server is doing, for Prometheus: every batch with its predicted and measured time, and the state between them.

Batches are counted as they end, on the event loop; what changes in between (queue, sessions, prices) is read there when
somebody asks. The endpoint has a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from wisp.config import ServerConfig
from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.prices import FleetMeter
from wisp.policy.scheduler import Scheduler
from wisp.policy.systems import drafting_of, estimator_of, expected_time
from wisp.server.loop import BatchRecord, VerificationLoop
from wisp.server.registry import SessionRegistry

BUCKETS = tuple(round(10.0 ** (exponent / 4.0), 6) for exponent in range(-12, 7))
"""Of batch times: from 1 ms to 32 s, four to a factor of ten."""
READ_TIMEOUT = 5.0
"""Seconds that a question may wait for a busy event loop."""

Family = CounterMetricFamily | GaugeMetricFamily


class Telemetry:
    """Counts batches; a `Collector` of everything that is exported."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._scheduler = scheduler
        self._clock = clock
        self._estimator = estimator_of(scheduler)
        self._meter = FleetMeter()
        self._batches = Counter("wisp_batches", "Batches that the engine computed.", registry=self.registry)
        self._failed = Counter("wisp_batches_failed", "Batches that the engine gave up.", registry=self.registry)
        self._busy_seconds = Counter("wisp_engine_busy_seconds", "Spent on batches.", registry=self.registry)
        self._measured = Histogram(
            "wisp_batch_seconds", "Measured time of a batch.", buckets=BUCKETS, registry=self.registry
        )
        self._predicted = Histogram(
            "wisp_batch_predicted_seconds", "Its estimate before it ran.", buckets=BUCKETS, registry=self.registry
        )
        self._error = Gauge(
            "wisp_batch_prediction_error",
            "Of the last batch: predicted over measured, minus 1.",
            registry=self.registry,
        )
        self._rounds = Counter("wisp_rounds", "Rounds that were verified.", registry=self.registry)
        tokens = Counter("wisp_tokens", "Tokens by what happened to them.", ["kind"], registry=self.registry)
        self._prefilled, self._verified, self._committed = map(tokens.labels, ("prefilled", "verified", "committed"))

    def before(self, observe: Callable[[BatchRecord], None] | None) -> Callable[[BatchRecord], None]:
        """What counts each batch and then passes it on."""
        if observe is None:
            return self.observe
        passed_on = observe

        def both(record: BatchRecord) -> None:
            self.observe(record)
            passed_on(record)

        return both

    def observe(self, record: BatchRecord) -> None:
        """Count a batch; to be told before the scheduler learns from it."""
        members, shape = record.batch.members, BatchShape.of(record.batch)
        num_rounds = 0 if record.failed else sum(member.completes for member in members)
        self._meter.observe(shape, record.started + record.elapsed, record.elapsed, num_rounds, record.num_committed)
        self._busy_seconds.inc(record.elapsed)
        if record.failed:
            self._failed.inc()
            return
        self._batches.inc()
        self._measured.observe(record.elapsed)
        self._rounds.inc(num_rounds)
        self._prefilled.inc(sum(member.num_prefill_tokens for member in members))
        self._verified.inc(sum(member.num_verified or 0 for member in members))
        self._committed.inc(record.num_committed)
        predicted = expected_time(self._scheduler, record.batch)
        if predicted is not None:
            self._predicted.observe(predicted)
            if record.elapsed > 0.0:
                self._error.set(predicted / record.elapsed - 1.0)

    def state(self, loop: VerificationLoop, sessions: SessionRegistry) -> list[Family]:
        """What is true now; on the event loop."""
        prices, utilisation = self._scheduler.prices(), self._meter.utilisation(self._clock())
        families: list[Family] = [
            _gauge("wisp_utilisation", "Share of the last ten seconds or so that the engine was busy.", utilisation),
            _gauge("wisp_queue_length", "Rounds that wait for the engine.", loop.num_waiting_rounds),
            _gauge("wisp_sessions", "Sessions that are open.", len(sessions)),
            _gauge("wisp_price_per_position", "Tokens forgone for one more position.", prices.per_position),
            _gauge("wisp_price_per_round", "Tokens forgone for one more round.", prices.per_round),
            _gauge("wisp_price_per_plain_token", "Tokens forgone for one of plain decoding.", prices.per_plain_token),
            CounterMetricFamily("wisp_sessions_refused", "Told to come back later.", sessions.num_refused),
            CounterMetricFamily("wisp_evictions", "Caches that made room for others.", loop.num_evicted),
        ]
        if self._estimator is not None:
            families += _estimates(self._estimator)
        if (drafting := drafting_of(self._scheduler)) is not None:
            families.append(_gauge("wisp_server_draft_tokens", "Drafted here for a plain round.", drafting.length))
        return families

    def expose(self, loop: VerificationLoop, sessions: SessionRegistry, config: ServerConfig) -> MetricsEndpoint:
        """Answer at the configured port while the running event loop runs. Raises ConfigError."""
        events, host = asyncio.get_running_loop(), config.metrics_host.strip("[]")
        self.registry.register(_Live(lambda: _read(events, lambda: self.state(loop, sessions))))
        try:
            server, _ = start_http_server(config.metrics_port or 0, host, self.registry)
        except OSError as error:
            where = f"{config.metrics_host}:{config.metrics_port}"
            raise ConfigError(f"cannot serve metrics on {where}: {error.strerror or error}") from error
        shown = f"[{host}]" if ":" in host else host
        return MetricsEndpoint(f"http://{shown}:{server.server_port}/metrics", server)


@dataclass(frozen=True, slots=True)
class MetricsEndpoint:
    """Serves metrics over HTTP until it is closed."""

    address: str
    """Where to read them."""
    _server: Any

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Live(Collector):
    """Families that are read when somebody asks; none are described before there is somebody."""

    def __init__(self, read: Callable[[], list[Family]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Family]:
        yield from self._read()

    def describe(self) -> Iterator[Family]:
        return iter(())


def _read(events: asyncio.AbstractEventLoop, state: Callable[[], list[Family]]) -> list[Family]:
    """On the event loop, from the endpoint's thread."""

    async def on_loop() -> list[Family]:
        return state()

    return asyncio.run_coroutine_threadsafe(on_loop(), events).result(READ_TIMEOUT)


def _estimates(estimator: VerificationTimeEstimator) -> list[Family]:
    errors = GaugeMetricFamily(
        "wisp_estimator_error", "Of recent batches, relative to what they took.", labels=["statistic"]
    )
    for name, value in asdict(estimator.errors).items():
        if name != "num_batches":
            errors.add_metric([name], value)
    return [errors, _gauge("wisp_estimator_safety", "Added to estimates that deadlines depend on.", estimator.safety)]


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value)
