"""A run that is watched closely, for a trace viewer: every batch, and what the first devices do.

Nothing of the simulation is changed: its verifiers' and links' calls are noted on their way.
"""

from __future__ import annotations

from collections.abc import Callable

from wisp.policy.session import Session
from wisp.policy.systems import SchedulerTerms, System, expected_time
from wisp.sim.device import Device, Ending
from wisp.sim.network import Link
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import Simulation
from wisp.sim.timeline import DeviceTimeline, Span, Timeline, TracedBatch, TracedSessionSpan, VerifierTimeline, Work
from wisp.sim.verifier import Verifier
from wisp.types import Batch


class _TracedLink(Link):
    """A link that tells of every message when it was sent and when it gets there."""

    told: Callable[[float, float], None]

    def arrival(self, sent: float) -> float:
        arrival = super().arrival(sent)
        self.told(sent, arrival)
        return arrival


def _traced(link: Link, told: Callable[[float, float], None]) -> Link:
    traced = _TracedLink(link.model, link.rng)
    traced.told = told
    return traced


class TracedSimulation(Simulation):
    """A simulation of which `timeline` tells afterwards what happened when; its report is the same."""

    def __init__(self, scenario: Scenario, system: System, seed: int, num_traced: int = 20) -> None:
        """The first `num_traced` devices are told of."""
        self._num_traced = num_traced
        self._verifiers: list[VerifierTimeline] = []
        self._devices: dict[str, DeviceTimeline] = {}
        super().__init__(scenario, system, seed)

    def timeline(self) -> Timeline:
        """What happened so far."""
        for device in self._running.values():
            if device.session is not None:
                self._note_session(device, device.session)
        return Timeline(self._verifiers, self._devices, self.scenario.losses, self.events.now)

    def _verifier(self, index: int, terms: SchedulerTerms) -> Verifier:
        verifier, timeline = super()._verifier(index, terms), VerifierTimeline()
        self._verifiers.append(timeline)
        watch = verifier.watch

        def on_batch(batch: Batch, started: float, elapsed: float) -> None:
            predicted = expected_time(verifier.scheduler, batch)
            timeline.batches.append(
                TracedBatch(batch, Span(started, started + elapsed), predicted, verifier.num_cached_tokens)
            )
            watch(batch, started, elapsed)

        verifier.watch = on_batch
        return verifier

    def _device(self, index: int) -> Device:
        device = super()._device(index)
        if index >= self._num_traced:
            return device
        timeline = self._devices[device.name] = DeviceTimeline()

        def on_sent(sent: float, arrival: float) -> None:
            # A draft is one event: at its start the device says when it is going to be sent.
            if sent > self.events.now and device.session is not None:
                num_sent = len(device.session.draft)
                timeline.drafts.append(Work(Span(self.events.now, sent), "drafting", {"tokens sent": num_sent}))
            timeline.uplink.append(Span(sent, arrival))

        device.uplink = _traced(device.uplink, on_sent)
        device.downlink = _traced(device.downlink, lambda sent, arrival: timeline.downlink.append(Span(sent, arrival)))
        return device

    def _ended(self, device: Device, session: Session, ending: Ending) -> None:
        self._note_session(device, session)
        super()._ended(device, session, ending)

    def _note_session(self, device: Device, session: Session) -> None:
        if device.name in self._devices:
            span = Span(session.started, self.events.now)
            self._devices[device.name].sessions.append(TracedSessionSpan(span, session))
