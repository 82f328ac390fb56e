"""Runs one point: N devices on one server, through ramp, warm-up, the judged window and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np

from wisp.bench.live.devices import DriverModels, EmulatedDevice, OfferedSession
from wisp.bench.live.fleet import DeviceScript, FleetModel, Workload
from wisp.bench.live.measures import DriverLoad, Measures, Window, measure
from wisp.bench.live.servers import Served
from wisp.errors import ConfigError
from wisp.formats.batch_log import read_batch_log
from wisp.policy.batch_time import BatchTime

_HEARTBEAT = 0.02
_GOODBYE = 0.2
FULL_FLEET = 24
"""Devices from which on a point is no longer than it is set."""
_CONNECTING_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Timing:
    """Of a point, in seconds."""

    warmup: float = 3.0
    """Sessions offered before are not judged; the devices start one after the other in this time, but for `settling`."""
    duration: float = 8.0
    """Sessions offered in this time after the warm-up are judged; small fleets are judged longer (`of_fleet`)."""
    drain: float = 10.0
    """How long load goes on for them to end at most; those that do not are missed."""
    settling: float = 0.0
    """Of the warm-up, after the last device has started."""

    def __post_init__(self) -> None:
        if self.duration <= 0.0 or min(self.warmup, self.drain) < 0.0:
            raise ConfigError("the judged time must be positive, warm-up and drain must not be negative")

    def of_fleet(self, num_devices: int) -> Timing:
        """The same for a fleet: one of fewer than `FULL_FLEET` devices offers too few sessions, up to twice as long helps."""
        return replace(self, duration=self.duration * min(max(FULL_FLEET / num_devices, 1.0), 2.0))

    def with_reading(self, seconds: float) -> Timing:
        """The same where engines first read contexts for so long: devices start as slowly as leaves half of it to the others."""
        return replace(self, warmup=self.warmup + 2.0 * seconds, settling=self.warmup)

    @property
    def ramp(self) -> float:
        """In which the devices start one after the other."""
        return self.warmup - self.settling

    @property
    def longest(self) -> float:
        """Seconds that a point takes at most, connecting not counted."""
        return self.warmup + self.duration + self.drain


@dataclass(frozen=True, slots=True)
class Load:
    """What a point puts on a server."""

    fleet: FleetModel
    workload: Workload
    timing: Timing
    seed: int
    num_devices: int


async def run_point(
    served: Served,
    load: Load,
    models: DriverModels,
    batch_time: BatchTime | None,
    advance: Callable[[float], None] = lambda _: None,
) -> Measures:
    """Measure one point; `advance` is told the seconds since the load began. Raises ConnectionLost and others."""
    async with _connected(served, load, models) as devices:
        window, driver = await _drive(devices, load.timing, advance)
        offered = [one for device in devices for one in device.offered]
    batches = await asyncio.to_thread(read_batch_log, served.batch_log)
    return measure(offered, batches, window, driver, batch_time)


@asynccontextmanager
async def _connected(
    served: Served, load: Load, models: DriverModels
) -> AsyncGenerator[Sequence[EmulatedDevice], None]:
    """The point's devices, each with a credential of its own: caches are shared within a credential only."""
    tokens = [secrets.token_hex(16) for _ in range(load.num_devices)]
    served.accept(tokens)
    devices = []
    for index, token in enumerate(tokens):
        script = DeviceScript(load.fleet, load.workload, load.seed, index)
        config = replace(served.device, token=token, emulated_rtt=script.traits.rtt)
        devices.append(EmulatedDevice(script, config, models))
    try:
        for first in range(0, len(devices), _CONNECTING_AT_ONCE):
            await _connect(devices[first : first + _CONNECTING_AT_ONCE])
        yield devices
    finally:
        await asyncio.gather(*(device.close() for device in devices), return_exceptions=True)


async def _connect(devices: Sequence[EmulatedDevice]) -> None:
    """Connect them at the same time; raises what the first one that fails raises."""
    try:
        async with asyncio.TaskGroup() as group:
            for device in devices:
                group.create_task(device.connect())
    except* Exception as errors:  # noqa: BLE001 - raised again
        raise errors.exceptions[0] from None


async def _drive(
    devices: Sequence[EmulatedDevice], timing: Timing, advance: Callable[[float], None]
) -> tuple[Window, DriverLoad]:
    """Run the devices until the judged sessions have ended, or the drain is over."""
    clock = asyncio.get_running_loop().time
    began = clock()
    window = Window(began + timing.warmup, began + timing.warmup + timing.duration)
    gap = timing.ramp / len(devices)
    running = [asyncio.create_task(device.run(gap * index)) for index, device in enumerate(devices)]
    lags: list[float] = []
    cpu_at_start = cpu_at_end = 0.0
    try:
        while (now := clock()) < window.end + timing.drain:
            if now < window.start:
                cpu_at_start = time.process_time()
            elif now < window.end:
                lags.append(await _lag(clock))
                cpu_at_end = time.process_time()
            elif not _unfinished(devices, window):
                break
            await asyncio.sleep(_HEARTBEAT)
            _raise_failure(running)
            advance(clock() - began)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        # Sessions that were cut off have yet to say so to the server: it would keep them for their devices' return.
        await asyncio.sleep(max(device.script.traits.rtt for device in devices) + _GOODBYE)
    lag = float(np.percentile(lags, 95)) if lags else 0.0
    return window, DriverLoad(cpu_at_end - cpu_at_start, lag)


def _unfinished(devices: Sequence[EmulatedDevice], window: Window) -> list[OfferedSession]:
    return [one for device in devices for one in device.offered if window.judges(one) and one.ended is None]


async def _lag(clock: Callable[[], float]) -> float:
    """How much too late a short sleep ends."""
    due = clock() + _HEARTBEAT
    await asyncio.sleep(_HEARTBEAT)
    return max(clock() - due, 0.0)


def _raise_failure(running: Sequence[asyncio.Task[None]]) -> None:
    """A device never ends by itself: what ends one is a defect."""
    for task in running:
        if task.done() and not task.cancelled():
            with contextlib.suppress(asyncio.CancelledError):
                task.result()
