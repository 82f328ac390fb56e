"""What a server exports to Prometheus."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import FakeTarget
from tests.server.device import PROMPT, config, connected, decode, draft, generation
from wisp.engines.base import StepMember
from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.scheduler import FCFSScheduler, Scheduler, SchedulerLimits
from wisp.policy.server_drafting import ServerDrafting, ServerDraftingSettings
from wisp.policy.slo_aware import SLOAwareScheduler
from wisp.server.app import RunningServer, start_server
from wisp.server.loop import BatchRecord
from wisp.server.telemetry import Telemetry
from wisp.types import Batch, BatchMember, VerificationRequest

Metrics = dict[tuple[str, str], float]
LIMITS = SchedulerLimits()
MODEL = BatchTimeModel(fixed_s=0.1, per_token_s=0.01)


async def scraped(running: RunningServer) -> Metrics:
    """(name, label) -> value, as Prometheus reads them."""
    assert running.metrics is not None
    address = running.metrics.address

    def read() -> str:
        with urlopen(address, timeout=10) as answer:
            return str(answer.read().decode())

    return parsed(await asyncio.to_thread(read))


def parsed(text: str) -> Metrics:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, next(iter(sample.labels.values()), "")): sample.value for sample in samples}


def counted(telemetry: Telemetry) -> Metrics:
    """What was counted, without an endpoint."""
    samples = [sample for family in telemetry.registry.collect() for sample in family.samples]
    return {(sample.name, next(iter(sample.labels.values()), "")): sample.value for sample in samples}


def record(elapsed: float = 0.5, **fields: Any) -> BatchRecord:
    request = VerificationRequest("s", 1, num_history_tokens=11, num_cached_tokens=8, num_draft_tokens=4, arrival=0.0)
    batch = Batch((BatchMember(request, 2, 4), BatchMember(request, 1, None)))
    return BatchRecord(batch, 1.0, elapsed, num_committed=3, **fields)


def estimating() -> SLOAwareScheduler:
    return SLOAwareScheduler(LIMITS, VerificationTimeEstimator(MODEL))


def test_each_batch_is_counted() -> None:
    """What was computed, and how long it took."""
    telemetry = Telemetry(FCFSScheduler(LIMITS), lambda: 0.0)
    telemetry.observe(record())
    telemetry.observe(record(0.25))
    metrics = counted(telemetry)
    assert metrics["wisp_batches_total", ""] == metrics["wisp_batch_seconds_count", ""] == 2
    assert metrics["wisp_batch_seconds_sum", ""] == metrics["wisp_engine_busy_seconds_total", ""] == 0.75
    assert metrics["wisp_rounds_total", ""] == 2
    kinds = ("prefilled", "verified", "committed")
    assert [metrics["wisp_tokens_total", kind] for kind in kinds] == [6, 8, 6]


def test_a_batch_is_exported_with_the_estimate_from_before_it_ran() -> None:
    """Of the form that the scheduler had then; without an estimator there is none."""
    scheduler = estimating()
    telemetry = Telemetry(scheduler, lambda: 0.0)
    telemetry.observe(record())
    predicted = MODEL.predict(BatchShape.of(record().batch))
    metrics = counted(telemetry)
    assert metrics["wisp_batch_predicted_seconds_sum", ""] == pytest.approx(predicted)
    assert metrics["wisp_batch_prediction_error", ""] == pytest.approx(predicted / 0.5 - 1.0)
    without = Telemetry(FCFSScheduler(LIMITS), lambda: 0.0)
    without.observe(record())
    assert counted(without)["wisp_batch_predicted_seconds_count", ""] == 0


def test_a_drafter_beside_the_target_counts_in_the_estimate() -> None:
    """A batch with drafts takes the time of both models."""
    drafting = ServerDrafting(BatchTimeModel(fixed_s=0.02, per_token_s=0.0))
    telemetry = Telemetry(SLOAwareScheduler(LIMITS, VerificationTimeEstimator(MODEL), drafting=drafting), lambda: 0.0)
    request = VerificationRequest("s", 1, 9, 8, 4, arrival=0.0, drafted_here=True)
    telemetry.observe(BatchRecord(Batch((BatchMember(request, 0, 4),)), 1.0, 0.5, num_committed=3))
    predicted = MODEL.predict(BatchShape().plus(5, 8)) + 4 * 0.02
    assert counted(telemetry)["wisp_batch_predicted_seconds_sum", ""] == pytest.approx(predicted)


def test_a_failed_batch_takes_time_and_counts_apart() -> None:
    """Its time says nothing about how long such batches take."""
    telemetry = Telemetry(estimating(), lambda: 0.0)
    telemetry.observe(record(failed=True))
    metrics = counted(telemetry)
    assert (metrics["wisp_batches_failed_total", ""], metrics["wisp_batches_total", ""]) == (1, 0)
    assert metrics["wisp_engine_busy_seconds_total", ""] == 0.5
    assert metrics["wisp_batch_seconds_count", ""] == metrics["wisp_batch_predicted_seconds_count", ""] == 0


def test_batches_are_passed_on() -> None:
    """The batch log sees what it saw without metrics."""
    telemetry, seen = Telemetry(FCFSScheduler(LIMITS), lambda: 0.0), list[BatchRecord]()
    telemetry.before(seen.append)(record())
    telemetry.before(None)(record())
    assert seen == [record()]
    assert counted(telemetry)["wisp_batches_total", ""] == 2


async def serving(scheduler: Scheduler, target: FakeTarget | None = None, **fields: Any) -> RunningServer:
    return await start_server(target or FakeTarget(), config(metrics_port=0, **fields), scheduler=scheduler)


@pytest.mark.parametrize("estimated", [True, False])
async def test_a_server_serves_its_metrics_over_http(*, estimated: bool) -> None:
    """On loopback, where it is asked to; what it says fits what a device did."""
    running = await serving(estimating() if estimated else FCFSScheduler(LIMITS))
    assert running.metrics is not None
    assert running.metrics.address.startswith("http://127.0.0.1:")
    async with connected(running.address) as device:
        await device.open(1, generation())
        await device.opened()
        await device.decode(1, decode(1, len(PROMPT)))
        verdict = await device.verdict()
        history = (*PROMPT, verdict.next_token)
        await device.draft(1, draft(2, history, num_right=2, num_wrong=1))
        assert (await device.verdict()).num_accepted == 2
        metrics = await scraped(running)
        assert metrics["wisp_sessions", ""] == 1
        assert metrics["wisp_queue_length", ""] == 0
        assert metrics["wisp_rounds_total", ""] == 2
        assert metrics["wisp_tokens_total", "committed"] == 4
        assert metrics["wisp_tokens_total", "verified"] == 3
        assert 0.0 <= metrics["wisp_utilisation", ""] <= 1.0
        prices = [metrics[f"wisp_price_per_{what}", ""] for what in ("position", "round", "plain_token")]
        assert prices == [0.0, 0.0, 0.0]
        estimates = {name for name, _ in metrics if name.startswith("wisp_estimator")}
        assert estimates == ({"wisp_estimator_error", "wisp_estimator_safety"} if estimated else set())
    await running.stop(0.0)


async def test_how_far_the_server_drafts_is_told() -> None:
    """Where it does."""
    drafting = ServerDrafting(MODEL, ServerDraftingSettings(max_tokens=3))
    running = await serving(SLOAwareScheduler(LIMITS, VerificationTimeEstimator(MODEL), drafting=drafting))
    assert (await scraped(running))["wisp_server_draft_tokens", ""] == 3
    await running.stop(0.0)


async def test_refused_sessions_and_the_queue_are_told() -> None:
    """Read on the event loop while the engine is at work."""
    events, entered = asyncio.get_running_loop(), asyncio.Event()
    leave = threading.Event()

    def block(_: list[StepMember]) -> None:
        events.call_soon_threadsafe(entered.set)
        leave.wait(10)

    running = await serving(FCFSScheduler(SchedulerLimits(max_sessions=2)), FakeTarget(on_step=block), max_sessions=2)
    async with connected(running.address) as device:
        for session in (1, 2):
            await device.open(session, generation())
            await device.opened()
        await device.open(3, generation())
        await device.error()
        await device.decode(1, decode(1, len(PROMPT)))
        async with asyncio.timeout(10):
            await entered.wait()
            await device.decode(2, decode(1, len(PROMPT)))
            while running.loop.num_waiting_rounds == 0:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0)
        metrics = await scraped(running)
        leave.set()
    assert metrics["wisp_sessions_refused_total", ""] == 1
    assert metrics["wisp_queue_length", ""] == 1
    await running.stop(0.0)


async def test_evictions_are_counted() -> None:
    """Whatever made the scheduler drop a cache."""

    class Evicting(FCFSScheduler):
        evicting: tuple[str, ...] = ("one", "two")

        def evictions(self) -> tuple[str, ...]:
            evicting, self.evicting = self.evicting, ()
            return evicting

    running = await serving(Evicting(LIMITS))
    async with connected(running.address) as device:
        await device.open(1, generation())
        await device.opened()
        assert (await scraped(running))["wisp_evictions_total", ""] == 2
    await running.stop(0.0)


async def test_there_is_no_endpoint_unless_it_is_asked_for() -> None:
    """And none is left when the server has stopped."""
    running = await start_server(FakeTarget(), config())
    assert running.metrics is None
    await running.stop(0.0)
    with_metrics = await serving(FCFSScheduler(LIMITS))
    await with_metrics.stop(0.0)
    with pytest.raises(OSError, match="refused"):
        await scraped(with_metrics)


async def test_a_port_that_is_taken_is_named() -> None:
    """With what was wrong, and without a server left behind."""
    running = await serving(FCFSScheduler(LIMITS))
    assert running.metrics is not None
    port = int(running.metrics.address.split(":")[-1].split("/")[0])
    with pytest.raises(ConfigError, match=f"cannot serve metrics on 127.0.0.1:{port}: Address already in use"):
        await start_server(FakeTarget(), config(metrics_port=port))
    with pytest.raises(ConfigError, match="port must be in"):
        config(metrics_port=1 << 16)
    await running.stop(0.0)
