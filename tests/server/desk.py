"""A server without sockets, in virtual time: frames in by method call, frames out as a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.fakes import FakeTarget
from tests.server.device import generation
from tests.virtual_time import VirtualEngineTime
from wisp.config import DEFAULT_SLO_CLASSES
from wisp.policy.scheduler import FCFSScheduler, SchedulerLimits
from wisp.protocol import frames
from wisp.protocol import wisp_pb2 as pb
from wisp.server.loop import VerificationLoop
from wisp.server.registry import RegistryLimits, SessionRegistry
from wisp.server.stream import DeviceStream
from wisp.types import DecodeRequest, DraftRequest, GenerationRequest

STEP_TIME = 1.0


@dataclass
class Desk:
    """The registry of a running server, and what it is built on."""

    target: FakeTarget
    scheduler: FCFSScheduler
    loop: VerificationLoop
    registry: SessionRegistry

    def device(self, owner: str = "me") -> Device:
        """A connected device."""
        return Device(self.registry, DeviceStream(owner))


@dataclass
class Device:
    """One stream; everything that was sent to it is taken out with `frames`."""

    registry: SessionRegistry
    stream: DeviceStream
    seen: list[bytes] = field(default_factory=list)

    def open(self, session: int, request: GenerationRequest | None = None, epoch: int = 1) -> None:
        self.registry.open(self.stream, frames.open_to_wire(session, epoch, request or generation()))

    def ask(self, session: int, request: DraftRequest | DecodeRequest, epoch: int = 1) -> None:
        self.registry.get(self.stream, session, epoch).on_request(request)

    def cancel(self, session: int, number: int, epoch: int = 1) -> None:
        self.registry.get(self.stream, session, epoch).on_cancel(number)

    def close(self, session: int, epoch: int = 1) -> None:
        self.registry.close(self.stream, session, epoch)

    def take(self) -> list[bytes]:
        """The frames that arrived since the last call, as bytes."""
        data = list(self.stream._frames)
        self.stream._frames.clear()
        self.seen += data
        return data

    def frames(self) -> list[pb.ServerFrame]:
        return [pb.ServerFrame.FromString(data) for data in self.take()]

    def bodies(self) -> list[Any]:
        return [getattr(frame, frame.WhichOneof("body") or "") for frame in self.frames()]

    async def opened(self, session: int, request: GenerationRequest | None = None, epoch: int = 1) -> pb.Opened:
        """Open a session and wait until it is."""
        self.open(session, request, epoch)
        await asyncio.sleep(0.001)
        (body,) = self.bodies()
        assert isinstance(body, pb.Opened), body
        return body


@asynccontextmanager
async def desk(scheduler: SchedulerLimits | None = None, eos_one_in: int = 0, **limits: Any) -> AsyncIterator[Desk]:
    """A server whose steps take STEP_TIME."""
    engine_time = VirtualEngineTime()
    target = FakeTarget(on_step=lambda _: engine_time.sleep(STEP_TIME), eos_one_in=eos_one_in)
    clock = asyncio.get_running_loop().time
    policy = FCFSScheduler(scheduler or SchedulerLimits())
    loop = VerificationLoop(target, policy, clock, engine_time)
    values = {
        "max_sessions": 8,
        "max_sessions_per_stream": 8,
        "max_history": target.card.context_length,
        "idle_timeout": 100.0,
        "slo_classes": DEFAULT_SLO_CLASSES,
        "default_slo": "normal",
        **limits,
    }
    registry = SessionRegistry(target.card, loop, policy, clock, RegistryLimits(**values))
    task = asyncio.create_task(loop.run())
    try:
        yield Desk(target, policy, loop, registry)
    finally:
        loop.stop()
        await task
