"""The simulator decides as the live server does: batch by batch, under contention, in virtual time.

The simulator's devices drive both: its own verifier, and the live registry, sessions and verification loop on an
emulated engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Any

import pytest

from tests.fakes import fake_card
from tests.virtual_time import VirtualEngineTime, run
from wisp.engines.co_located import CoLocatedTarget
from wisp.engines.timed import RecordedOutputs, TimedTarget
from wisp.errors import ServerBusy
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.scheduler import Scheduler, SchedulerLimits
from wisp.policy.systems import SYSTEMS, System
from wisp.protocol import frames
from wisp.protocol import wisp_pb2 as pb
from wisp.server.loop import VerificationLoop
from wisp.server.registry import RegistryLimits, SessionRegistry, engine_id
from wisp.server.stream import DeviceStream
from wisp.sim.hardware import ServerDrafter
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.script import SessionScript
from wisp.sim.served import ServedSession
from wisp.sim.simulator import Simulation
from wisp.sim.workload import Lengths, Spread, Workload
from wisp.types import (
    SLO,
    Admitted,
    Batch,
    DecodeRequest,
    DraftedToken,
    DraftRequest,
    GenerationRequest,
    RetryAfter,
    SessionDemand,
    Verdict,
    WaitUntil,
)

BATCH_TIME = BatchTimeModel(fixed_s=0.02, per_token_s=0.0004, per_cached_s=1e-6, per_request_s=0.0003).predict
DRAFT_TIME = BatchTimeModel(fixed_s=1 / 256, per_token_s=1 / 65536, per_request_s=1 / 8192).predict
"""Of a drafter beside the target; in powers of two, so that a step lasts the same in whatever order it is added up."""
NUM_BATCHES = 1000
OWNER = "me"

Decision = tuple[float, tuple[tuple[str, int, int, int | None], ...]]
"""When, and for each member its session, round, prefill chunk and draft tokens to verify."""


class Recording:
    """A scheduler, and a record of what it decided."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner = inner
        self.decisions: list[Decision] = []
        self.num_evicted = self.num_refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def admit(self, session: SessionDemand, now: float) -> Admitted | RetryAfter:
        answer = self._inner.admit(session, now)
        self.num_refused += isinstance(answer, RetryAfter)
        return answer

    def schedule(self, now: float) -> Batch | WaitUntil:
        decision = self._inner.schedule(now)
        if isinstance(decision, Batch):
            members = [
                (one.request.session_id, one.request.round, one.num_prefill_tokens, one.num_verified)
                for one in decision.members
            ]
            self.decisions.append((now, tuple(members)))
        return decision

    def evictions(self) -> tuple[str, ...]:
        evictions = self._inner.evictions()
        self.num_evicted += len(evictions)
        return evictions


@dataclass
class ScriptedSession:
    """What the scripted drafter knows of a session."""

    script: SessionScript
    num_committed: int
    """Output tokens."""
    num_drafted: int = 0
    num_unread: int = 0
    """Tokens that the next step reads."""


@dataclass
class ScriptedDrafter:
    """The drafter beside the live target: it proposes what the simulator's script says, and takes time for it."""

    scripts: dict[str, SessionScript]
    """By prompt, see `LiveVerifier.open`."""
    sleep: Callable[[float], None]
    model_id: str = "scripted"
    vocabulary: str | None = None
    vocabulary_size: int | None = None
    weights: str | None = None
    context_length: int = 1 << 31
    _sessions: dict[str, ScriptedSession] = field(default_factory=dict)

    def open(self, session_id: str, request: GenerationRequest) -> None:
        script = self.scripts[str(request.tokens[0])]
        self._sessions[session_id] = ScriptedSession(script, request.num_output_tokens, num_unread=len(request.tokens))

    def draft(self, session_ids: Sequence[str]) -> list[DraftedToken | None]:
        sessions = [self._sessions[session_id] for session_id in session_ids]
        drafted = [one.script.drafted(one.num_committed, one.num_drafted) for one in sessions]
        self.sleep(DRAFT_TIME(BatchShape(sum(one.num_unread for one in sessions), num_requests=len(sessions))))
        for one in sessions:
            one.num_drafted, one.num_unread = one.num_drafted + 1, 1
        return drafted  # type: ignore[return-value]

    def commit(self, session_id: str, num_accepted: int, tokens: Sequence[int]) -> None:
        one = self._sessions[session_id]
        # What was drafted last has not been read, and what was rejected is forgotten.
        unread = one.num_unread if num_accepted == one.num_drafted else 0
        one.num_unread, one.num_drafted = unread + len(tokens), 0
        one.num_committed += num_accepted + len(tokens)

    def close(self, session_id: str) -> None:
        del self._sessions[session_id]

    def shutdown(self) -> None:
        self._sessions.clear()


class LoopEvents:
    """The simulator's events, on the event loop; its timers of one instant come in any order, events in that of asking."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = 0

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def at(self, time: float, action: Callable[[Any], None], argument: Any = None) -> None:
        heappush(self._heap, (time, self._order, action, argument))
        self._order += 1
        asyncio.get_running_loop().call_at(time, self._take)

    def _take(self) -> None:
        _, _, action, argument = heappop(self._heap)
        action(argument)


class Receiving(DeviceStream):
    """A stream whose frames reach the device's verdict handler at once; the device adds the network's delay."""

    def send(self, frame: bytes) -> None:
        message = pb.ServerFrame.FromString(frame)
        if message.WhichOneof("body") == "verdict":
            self.on_verdict(frames.verdict_from_wire(message.verdict))

    on_verdict: Callable[[Verdict], None]


@dataclass
class LiveVerifier:
    """The live server behind the interface of the simulated one."""

    registry: SessionRegistry
    recorded: dict[tuple[int, ...], tuple[int, ...]]
    scripts: dict[str, SessionScript]
    served: dict[str, tuple[Receiving, int]] = field(default_factory=dict)
    numbers: count[int] = field(default_factory=lambda: count(1))
    sessions = ()
    is_up = True

    def open(self, session: ServedSession) -> Admitted | RetryAfter:
        number = next(self.numbers)
        stream = Receiving(OWNER)
        stream.on_verdict = session.send
        self.served[session.session_id] = stream, number
        script = session.script
        request = script.generation(session.max_new_tokens)
        prompt = (number,) * script.num_prompt_tokens  # tells the sessions of the record apart
        self.recorded[prompt] = tuple(script.token(position) for position in range(script.num_output_tokens))
        self.scripts[str(number)] = script
        slo = None if script.slo is None else script.slo.name
        try:
            self.registry.open(stream, frames.open_to_wire(number, 1, replace(request, tokens=prompt, slo=slo)))
        except ServerBusy as busy:
            return RetryAfter(busy.retry_after, str(busy))
        return Admitted()

    def ask(self, session: ServedSession, request: DraftRequest | DecodeRequest) -> None:
        stream, number = self.served[session.session_id]
        self.registry.get(stream, number, 1).on_request(request)

    def close(self, session: ServedSession) -> None:
        stream, number = self.served[session.session_id]
        self.registry.close(stream, number, 1)

    @property
    def names(self) -> dict[str, str]:
        """The simulator's names of the live server's sessions."""
        return {engine_id(OWNER, number): name for name, (_, number) in self.served.items()}


def _scenario(num_devices: int, **limits: int) -> Scenario:
    return Scenario(
        BATCH_TIME,
        num_devices=num_devices,
        fleet=Fleet(Spread(20.0, 200.0), rtt=Spread(0.005, 0.05), jitter=0.003, loss=0.02),
        workload=Workload(
            Lengths(60.0, 1.0, 400), Lengths(30.0, 0.8, 200), (SLO("a", 4.0, 2.0), SLO("b", 8.0, 3.0)), think_time=1.0
        ),
        limits=SchedulerLimits(
            **{"max_sessions": 64, "max_batch_requests": 12, "max_batch_tokens": 96, "max_prefill_tokens": 48, **limits}
        ),
        server_drafter=ServerDrafter(DRAFT_TIME, limits.get("kv_capacity_tokens", 1 << 31)),
        warmup=0.0,
        duration=1000.0,
        ramp=2.0,
    )


def _recording(system: System) -> System:
    """The same system, whose scheduler is recorded."""
    return replace(system, scheduler=lambda terms: Recording(system.scheduler(terms)))


def _simulated(scenario: Scenario, system: System) -> Recording:
    """Decisions of the simulator, until there are enough."""
    simulation = Simulation(scenario, _recording(system), seed=5)
    (verifier,) = simulation.cluster.verifiers
    scheduler = verifier.scheduler
    assert isinstance(scheduler, Recording)
    watch = verifier.watch

    def stop_when_done(batch: Batch, started: float, elapsed: float) -> None:
        watch(batch, started, elapsed)
        if len(scheduler.decisions) >= NUM_BATCHES:
            simulation.events.stop()

    verifier.watch = stop_when_done
    simulation.run()
    return scheduler


async def _live(scenario: Scenario, system: System, until: float) -> list[Decision]:
    """Decisions of the live server up to some time, with the simulator's devices."""
    simulation = Simulation(scenario, _recording(system), seed=5)
    scheduler = simulation.cluster.verifiers[0].scheduler
    assert isinstance(scheduler, Recording)
    engine_time, recorded, scripts = VirtualEngineTime(), {}, {}
    card = replace(fake_card(context_length=1 << 20), vocabulary_size=1 << 20)
    target = TimedTarget(card, RecordedOutputs(recorded), BATCH_TIME, engine_time.sleep)
    clock = asyncio.get_running_loop().time
    drafter = ScriptedDrafter(scripts, engine_time.sleep)
    engine = CoLocatedTarget(target, drafter) if system.drafts.on_server else target
    loop = VerificationLoop(engine, scheduler, clock, engine_time)
    limits = RegistryLimits(
        max_sessions=1 << 20,
        max_sessions_per_stream=4,
        max_history=1 << 20,
        idle_timeout=1e9,
        slo_classes=scenario.workload.slos,
        default_slo="a",
    )
    verifier = LiveVerifier(SessionRegistry(card, loop, scheduler, clock, limits), recorded, scripts)
    simulation.cluster.verifiers = [verifier]  # type: ignore[list-item]
    simulation.events = LoopEvents()  # type: ignore[assignment]
    for index in range(scenario.num_devices):
        start = scenario.ramp * index / scenario.num_devices
        simulation.events.at(start, simulation._begin, simulation._device(index))
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(until + 1.0)  # the last decision falls on that time, to the rounding of its sum
    loop.stop()
    await task
    names = verifier.names
    return [
        (time, tuple((names[name], *rest) for name, *rest in members))  # type: ignore[misc]
        for time, members in scheduler.decisions
    ]


@pytest.mark.parametrize("name", SYSTEMS)
def test_simulator_and_live_server_decide_alike(name: str) -> None:
    """Over 1,000 batches of a fleet that keeps the server busy: the same members, chunks and drafts at the same times."""
    scenario = _scenario(40)
    ours = _simulated(scenario, SYSTEMS[name]).decisions
    assert len(ours) >= NUM_BATCHES
    assert sum(len(members) for _, members in ours) / len(ours) > 4, "no contention"
    theirs = run(_live(scenario, SYSTEMS[name], ours[-1][0]))
    assert [members for _, members in theirs[:NUM_BATCHES]] == [members for _, members in ours[:NUM_BATCHES]]
    assert [time for time, _ in theirs[:NUM_BATCHES]] == pytest.approx([time for time, _ in ours[:NUM_BATCHES]])


def test_they_decide_alike_when_the_cache_is_tight_and_sessions_are_refused() -> None:
    """Evictions, prefill anew and admission included."""
    scenario = _scenario(40, max_sessions=24, kv_capacity_tokens=900, kv_page_tokens=16)
    system = replace(SYSTEMS["sled-fcfs"], threshold=None)
    simulated = _simulated(scenario, system)
    ours = simulated.decisions
    assert simulated.num_evicted > 100
    assert simulated.num_refused > 100
    theirs = run(_live(scenario, system, ours[-1][0]))
    assert [members for _, members in theirs[:NUM_BATCHES]] == [members for _, members in ours[:NUM_BATCHES]]
