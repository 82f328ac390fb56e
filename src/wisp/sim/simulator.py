"""One run: a fleet, a server and a workload in virtual time.

Every device and every session has a random stream of its own, derived from the seed: whatever the policy does, the
same seed brings the same devices, prompts, answers and pauses, and runs of different systems are paired.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.scheduler import Scheduler
from wisp.policy.session import Session
from wisp.policy.stop_rules import StopTerms, make_stop_rule
from wisp.policy.systems import Drafts, SchedulerTerms, System
from wisp.sim.cluster import Cluster
from wisp.sim.device import Device, DeviceRules, Ending
from wisp.sim.estimation import initial_model
from wisp.sim.events import Events
from wisp.sim.experience import serve_before
from wisp.sim.hardware import noisy
from wisp.sim.network import Link
from wisp.sim.oracle import Oracle, OracleDevice
from wisp.sim.report import Observer, Report, Seen
from wisp.sim.scenario import Scenario
from wisp.sim.script import SessionScript
from wisp.sim.verifier import Verifier
from wisp.sim.workload import TracedSession

FLEET, UPLINKS, DOWNLINKS, SESSIONS, PAUSES, ARRIVALS, NOISE, CHURN, BEFORE = range(9)
"""Purposes of random streams."""

Progress = Callable[[float], None]
"""Called now and then with the share of the run that is done."""

NUM_PROGRESS_CALLS = 100
_FRESH = np.random.Philox(key=0).state
"""A stream's state at its beginning, but for the key."""


@dataclass(frozen=True, slots=True)
class Part:
    """One verifier, and the devices whose sessions it alone serves."""

    verifier: int
    devices: Sequence[int]


@dataclass(slots=True)
class Simulation:
    """A scenario under one system and one seed; `run` it once."""

    scenario: Scenario
    system: System
    seed: int
    level: float = 0.0
    """The run is given up once fewer than this share of its sessions can still be attained: all that it then tells."""
    part: Part | None = None
    """Only this part of a closed fleet; None: all of it."""
    events: Events = field(default_factory=Events, init=False)
    observer: Observer = field(init=False)
    cluster: Cluster = field(init=False)
    _rules: DeviceRules = field(init=False)
    _running: dict[str, Device] = field(default_factory=dict, init=False)
    _num_awaited: int = field(default=0, init=False)
    """Sessions under way that were offered before the judged time was over: who is there when it ends is judged."""
    _arrivals: Iterator[tuple[float, TracedSession | None]] = field(init=False)
    _num_arrived: int = field(default=0, init=False)
    _passing: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        scenario, system = self.scenario, self.system
        self._passing = self.rng(SESSIONS)
        self.observer = Observer(
            scenario.batch_time, scenario.warmup, scenario.end, judges_under_way=scenario.judges_under_way
        )
        terms, part = _terms(scenario, system), self.part
        indices = range(scenario.num_verifiers) if part is None else (part.verifier,)
        verifiers = [self._verifier(index, terms) for index in indices]
        self.cluster = Cluster(verifiers, scenario.placement, scenario.limits.retry_after)
        self.cluster.schedule(scenario.losses, self.events.at)
        self._rules = DeviceRules(
            stop_rule=make_stop_rule(system.stop_rule, _stop_terms(scenario, system)),
            drafts=system.drafts.on_devices,
            settings=scenario.settings,
            max_new_tokens=scenario.workload.longest_output,
            attempts=scenario.attempts,
            churn=scenario.fleet.churn,
        )
        self._arrivals = self._open_arrivals()

    def run(self, progress: Progress | None = None) -> Report:
        """Run until every judged session has ended, or the drain is over."""
        return self.watch(progress).report(self.scenario.num_verifiers, self.events.num_taken, self.events.now)

    def watch(self, progress: Progress | None = None) -> Seen:
        """The same, but return what was seen."""
        with _uncollected():
            self._run(progress)
        return self.observer.seen

    def _run(self, progress: Progress | None) -> None:
        scenario, events = self.scenario, self.events
        if scenario.is_closed:
            for index in range(scenario.num_devices) if self.part is None else self.part.devices:
                events.at(scenario.ramp * index / scenario.num_devices, self._begin, self._device(index))
        else:
            self._await_arrival()
        events.at(scenario.end, self._stop_if_done)
        if progress is not None:
            for step in range(NUM_PROGRESS_CALLS + 1):
                events.at(scenario.end * step / NUM_PROGRESS_CALLS, progress, step / NUM_PROGRESS_CALLS)
        events.run(scenario.end + scenario.drain)
        for device in self._running.values():
            if device.session is not None:
                self.observer.on_session(device.session, events.now, finished=False)

    def rng(self, purpose: int, device: int = 0, session: int = 0) -> np.random.Generator:
        """The random stream of one purpose, of one device and session: counter-based, so that none needs another."""
        return np.random.Generator(np.random.Philox(key=self._key(purpose, device, session)))

    def _key(self, purpose: int, device: int, session: int) -> int:
        return (self.seed << 64) + (purpose << 56) + (device << 24) + session

    def _passing_rng(self, purpose: int, device: int, session: int = 0) -> np.random.Generator:
        """The same stream, good until another passing one is asked for: a new generator takes as long as three events."""
        high, low = divmod(self._key(purpose, device, session), 1 << 64)
        key = np.array([low, high], dtype=np.uint64)
        self._passing.bit_generator.state = {**_FRESH, "state": {**_FRESH["state"], "key": key}}
        return self._passing

    def _device(self, index: int) -> Device:
        rng, fleet = self._passing_rng(FLEET, index), self.scenario.fleet
        link = fleet.link(rng)
        kind = OracleDevice if isinstance(self.system, Oracle) else Device
        return kind(
            name=str(index),
            events=self.events,
            cluster=self.cluster,
            rules=self._rules,
            drafter=fleet.drafter(rng),
            uplink=Link(link, self.rng(UPLINKS, index)),
            downlink=Link(link, self.rng(DOWNLINKS, index)),
            ended=self._ended,
            chance=self._chance,
        )

    def _chance(self, device: Device) -> np.random.Generator:
        return self.rng(CHURN, int(device.name), device.num_sessions)

    def _verifier(self, index: int, terms: SchedulerTerms) -> Verifier:
        scenario, drafter, overhead = self.scenario, self.scenario.server_drafter, self.scenario.overhead
        batch_time = noisy(scenario.batch_time, scenario.batch_noise, self.rng(NOISE, index))
        verifier = Verifier(
            self.events,
            lambda: _scheduler(self.system, scenario, terms),
            batch_time if overhead is None else overhead.on(batch_time),
            self.observer.on_batch,
            None if drafter is None else drafter.batch_time,
            drafter is not None and drafter.kv_share > 0.0,
            scenario.swap_s_per_token,
            None if overhead is None else overhead.after.predict,
        )
        before = self.rng(BEFORE, index)
        serve_before(verifier.scheduler, (scenario.workload.script(before) for _ in range(scenario.num_served_before)))
        return verifier

    def _script(self, device: Device, traced: TracedSession | None = None) -> SessionScript:
        rng = self._passing_rng(SESSIONS, int(device.name), device.num_sessions)
        return self.scenario.workload.script(rng, traced)

    def _begin(self, device: Device, traced: TracedSession | None = None) -> None:
        self._running[device.name] = device
        self._num_awaited += self.events.now < self.scenario.end
        device.start(self._script(device, traced))

    def _ended(self, device: Device, session: Session, ending: Ending) -> None:
        del self._running[device.name]
        abandoned = ending is Ending.ABANDONED
        self.observer.on_session(session, self.events.now, finished=ending is Ending.FINISHED, abandoned=abandoned)
        self._num_awaited -= session.started < self.scenario.end
        if self.events.now >= self.scenario.end:
            self._stop_if_done()
        if self.scenario.is_closed:
            pause = self.scenario.workload.pause(self._passing_rng(PAUSES, int(device.name), device.num_sessions))
            self.events.at(self.events.now + pause, self._begin, device)

    def _stop_if_done(self, _: None = None) -> None:
        """Once all judged sessions have ended, or too many of them have missed."""
        seen = self.observer.seen
        num_judged = len(seen.judged) + self._num_awaited
        if not self._num_awaited or seen.num_missed > (1.0 - self.level) * num_judged:
            self.events.stop()

    # Open arrivals

    def _open_arrivals(self) -> Iterator[tuple[float, TracedSession | None]]:
        workload = self.scenario.workload
        if workload.trace:
            yield from ((traced.arrival, traced) for traced in workload.trace)
        elif workload.arrivals is not None:
            yield from ((time, None) for time in workload.arrivals.draw(self.rng(ARRIVALS)))

    def _await_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self.events.at(arrival[0], self._arrive, arrival[1])

    def _arrive(self, traced: TracedSession | None) -> None:
        device = self._device(self._num_arrived)
        self._num_arrived += 1
        self._begin(device, traced)
        self._await_arrival()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of reference cycles: a run leaves none, and it would look at every session again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _terms(scenario: Scenario, system: System) -> SchedulerTerms:
    """What a server knows when it starts: the limits, and fits to measurements of its engine and drafter."""
    known = initial_model(scenario.batch_time) if system.estimates else BatchTimeModel()
    drafter = scenario.server_drafter if system.drafts.on_server else None
    if drafter is None:
        if system.drafts is Drafts.ON_SERVER:
            raise ConfigError("a system that drafts on the server needs a drafter there")
        return SchedulerTerms(scenario.limits, known, settings=scenario.scheduler_settings)
    limits = replace(scenario.limits, kv_capacity_tokens=drafter.kv_capacity_tokens, drafter_kv_share=drafter.kv_share)
    return SchedulerTerms(limits, known, initial_model(drafter.batch_time), scenario.scheduler_settings)


def _scheduler(system: System, scenario: Scenario, terms: SchedulerTerms) -> Scheduler:
    return system.scheduler_on(scenario.batch_time, terms) if isinstance(system, Oracle) else system.scheduler(terms)


def _stop_terms(scenario: Scenario, system: System) -> StopTerms:
    threshold = system.threshold
    if threshold is None and system.stop_rule == "predicted":
        threshold = scenario.rejection_threshold
    return StopTerms(system.max_draft_tokens, threshold, scenario.predictor)


def simulate(
    scenario: Scenario, system: System, seed: int, progress: Progress | None = None, level: float = 0.0
) -> Report:
    """Run a scenario under a system; give it up once less than `level` of its sessions can be attained."""
    return Simulation(scenario, system, seed, level).run(progress)
