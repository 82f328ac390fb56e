"""A device's stream to the verifier that one of its sessions was placed on; what is on the way when it breaks is lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from wisp.sim.cluster import Cluster
from wisp.sim.events import Events
from wisp.sim.network import Link
from wisp.sim.served import ServedSession
from wisp.sim.verifier import Verifier
from wisp.types import Admitted, DecodeRequest, DraftRequest, RetryAfter, Verdict


class Receiver(Protocol):
    """What a device hears."""

    def on_verdict(self, verdict: Verdict) -> None: ...
    def on_opened(self) -> None:
        """The session was admitted; told only if nothing was asked for in the same breath."""

    def on_refused(self, retry_after: float) -> None: ...
    def on_lost(self) -> None: ...


@dataclass(slots=True, eq=False)
class Connection:
    """One attempt to have a session served, and all that comes of it."""

    events: Events
    cluster: Cluster
    uplink: Link
    downlink: Link
    receiver: Receiver
    key: str
    """What sessions are placed by."""
    broken: bool = field(default=False, init=False)
    _verifier: Verifier | None = field(default=None, init=False)
    _served: ServedSession | None = field(default=None, init=False)

    def open(self, served: ServedSession, request: DraftRequest | DecodeRequest | None) -> None:
        """Ask for admission, and at once for a first round."""
        self.uplink.reconnect()
        self.downlink.reconnect()
        self._served = served
        self.events.at(self.uplink.arrival(self.events.now), self._arrived, request)

    def ask(self, sent: float, request: DraftRequest | DecodeRequest) -> None:
        """Ask for a round at the time `sent`."""
        self.events.at(self.uplink.arrival(sent), self._asked, request)

    def close(self) -> None:
        """End the session on the server."""
        if self._verifier is not None:
            self.events.at(self.uplink.arrival(self.events.now), self._verifier.close, self._served)
        self._served = None

    def break_off(self) -> None:
        """Vanish in the middle; the server hears of it as of a close."""
        self.broken = True
        self.uplink.reconnect()
        self.close()

    # At the server

    def send(self, verdict: Verdict) -> None:
        """Send a verdict to the device."""
        self.events.at(self.downlink.arrival(self.events.now), self._verdict, verdict)

    def lose(self) -> None:
        """The verifier failed; the device hears of it as of a connection that was closed."""
        self.events.at(self.downlink.arrival(self.events.now), self._lost)

    def _arrived(self, request: DraftRequest | DecodeRequest | None) -> None:
        if self.broken:
            return
        assert self._served is not None, "it was opened"
        answer: Admitted | RetryAfter = RetryAfter(self.cluster.retry_after, "no verifier is up")
        verifier = self.cluster.place(self.key)
        if verifier is not None:
            answer = verifier.open(self._served)
        if isinstance(answer, RetryAfter):
            self.events.at(self.downlink.arrival(self.events.now), self._refused, answer.retry_after)
            return
        assert verifier is not None, "it answered"
        self._verifier = verifier
        if request is not None:
            verifier.ask(self._served, request)
        else:
            self.events.at(self.downlink.arrival(self.events.now), self._opened)

    def _asked(self, request: DraftRequest | DecodeRequest) -> None:
        if not self.broken:
            assert self._verifier is not None, "rounds follow admission"
            assert self._served is not None, "rounds follow admission"
            self._verifier.ask(self._served, request)

    # At the device

    def _verdict(self, verdict: Verdict) -> None:
        if not self.broken:
            self.receiver.on_verdict(verdict)

    def _opened(self, _: None) -> None:
        if not self.broken:
            self.receiver.on_opened()

    def _refused(self, retry_after: float) -> None:
        if not self.broken:
            self._served = None
            self.receiver.on_refused(retry_after)

    def _lost(self, _: None) -> None:
        # A session that ended while the message was on its way is missed by nobody.
        if not self.broken and self._served is not None:
            self.broken, self._served = True, None
            self.receiver.on_lost()
