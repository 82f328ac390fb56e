"""A device in virtual time: one session after the other, each driven by the live `policy.session.Session`.

Nothing reaches a device while it drafts, so a whole draft is one event: the stop rule runs at its start, with the times
at which its tokens are going to be there.

A refused session is asked for again, a few times. One that was admitted and whose verifier, or whose device, is gone is
opened again with its history as soon as both are there: whatever was on the way on the old connection is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from wisp.policy.controller import StopRule
from wisp.policy.measurements import Measurements
from wisp.policy.session import Session, SessionSettings
from wisp.sim.cluster import Cluster
from wisp.sim.connection import Connection
from wisp.sim.events import Events
from wisp.sim.network import Churn, Link
from wisp.sim.script import SessionScript
from wisp.sim.served import ServedSession
from wisp.types import Verdict


class Ending(Enum):
    """How a session ended."""

    FINISHED = "finished"
    REFUSED = "refused"
    """As often as it was asked for."""
    ABANDONED = "abandoned"
    """By its user, after a disconnection."""


@dataclass(frozen=True, slots=True)
class Drafter:
    """How fast a device drafts."""

    token_time: float
    """Seconds per drafted token."""
    prompt_token_time: float = 0.0
    """Seconds per token that is only read: the prompt, and what plain decoding brought."""


@dataclass(frozen=True, slots=True)
class DeviceRules:
    """What is the same for all devices."""

    stop_rule: StopRule
    drafts: bool
    """False: there is no drafter on the device."""
    settings: SessionSettings
    max_new_tokens: int
    attempts: int = 1
    """Times that a session is asked for before it counts as refused."""
    churn: Churn = field(default_factory=Churn)


@dataclass(slots=True, eq=False)
class Device:
    """One device with its two links to the servers; `ended` is called with each session that is over."""

    name: str
    events: Events
    cluster: Cluster
    rules: DeviceRules
    drafter: Drafter
    uplink: Link
    downlink: Link
    ended: Callable[[Device, Session, Ending], None]
    chance: Callable[[Device], np.random.Generator]
    """The random stream of a session's disconnections."""
    num_sessions: int = field(default=0, init=False)
    session: Session | None = field(default=None, init=False)
    script: SessionScript | None = field(default=None, init=False)
    _connection: Connection | None = field(default=None, init=False)
    _num_attempts: int = field(default=0, init=False)
    _earlier: Measurements | None = field(default=None, init=False)
    """Of the session before."""
    _ready: float = field(default=0.0, init=False)
    """When the drafter has read the prompt."""
    _lag: int = field(default=0, init=False)
    """Tokens that came without a draft and that the drafter has yet to read."""

    def start(self, script: SessionScript) -> None:
        """Begin a session."""
        now, rules = self.events.now, self.rules
        self.num_sessions += 1
        generation = script.generation(rules.max_new_tokens)
        session = Session(generation, rules.stop_rule, rules.settings, script.slo, now, self._earlier)
        self.script, self.session, self._earlier = script, session, session.measured
        self._ready = now + self.drafter.prompt_token_time * script.num_prompt_tokens
        self._lag = self._num_attempts = 0
        if rules.churn.rate:
            self._await_departure(self.chance(self))
        self._connect()

    def _end(self, ending: Ending) -> None:
        session, self.session, self._connection = self.session, None, None
        assert session is not None, "only sessions end"
        self.ended(self, session, ending)

    # Connections

    def _connect(self) -> None:
        """Open the session, with its first round in the same breath unless it was begun on another connection."""
        session, script, rules, now = self.session, self.script, self.rules, self.events.now
        assert session is not None, "connections are for sessions"
        assert script is not None, "sessions follow scripts"
        connection = Connection(self.events, self.cluster, self.uplink, self.downlink, self, self.name)
        name = f"{self.name}:{self.num_sessions}/{session.epoch}"
        output = session.num_output_tokens
        served = ServedSession(name, script, rules.max_new_tokens, connection.send, connection.lose, output)
        request = None
        if not output:
            session.begin_round(now)
            request = session.request(now, may_draft=rules.drafts)
        self._connection = connection
        self._num_attempts += 1
        connection.open(served, request)

    def on_opened(self) -> None:
        """Go on where the session stands."""
        self._next_round()

    def on_refused(self, retry_after: float) -> None:
        """Ask again later; how often, only for a session that was never begun is counted."""
        assert self.session is not None, "sessions are refused"
        if self.session.token_times or self._num_attempts < self.rules.attempts:
            self.events.at(self.events.now + retry_after, self._try_again, self._connection)
        else:
            self._end(Ending.REFUSED)

    def _try_again(self, refused: Connection) -> None:
        if not refused.broken:
            self._connect()

    def on_lost(self) -> None:
        """Open the session again, with its history."""
        assert self.session is not None, "sessions are lost"
        self.session.reopen()
        self._connect()

    # Churn

    def _await_departure(self, rng: np.random.Generator) -> None:
        time = self.events.now + rng.exponential(1.0 / self.rules.churn.rate)
        self.events.at(time, self._leave, (self.num_sessions, rng))

    def _leave(self, departure: tuple[int, np.random.Generator]) -> None:
        """Vanish from the network."""
        number, rng = departure
        if self.session is None or number != self.num_sessions:
            return
        assert self._connection is not None, "sessions have connections"
        self._connection.break_off()
        self.session.reopen()
        if rng.random() < self.rules.churn.abandoned:
            self._end(Ending.ABANDONED)
            return
        self.events.at(self.events.now + rng.exponential(self.rules.churn.away), self._return, departure)

    def _return(self, departure: tuple[int, np.random.Generator]) -> None:
        self._connect()
        self._await_departure(departure[1])

    # Rounds

    def on_verdict(self, verdict: Verdict) -> None:
        """Commit it, and go on."""
        session, connection = self.session, self._connection
        assert session is not None, "verdicts come in sessions"
        assert connection is not None, "verdicts come over connections"
        drafted = bool(session.draft)
        committed = session.on_verdict(verdict, self.events.now)
        self._lag = 0 if drafted else self._lag + len(committed)
        if session.finish_reason is not None:
            connection.close()
            self._end(Ending.FINISHED)
        elif verdict.final:
            self._next_round()

    def _next_round(self) -> None:
        session, connection, now = self.session, self._connection, self.events.now
        assert session is not None, "rounds belong to sessions"
        assert connection is not None, "rounds go over connections"
        session.begin_round(now)
        sent = self._draft(session, now) if self.rules.drafts else now
        connection.ask(sent, session.request(sent, may_draft=self.rules.drafts))

    def _draft(self, session: Session, now: float) -> float:
        """Draft as the stop rule wants it, after catching up; returns when the draft is complete."""
        script, token_time = self.script, self.drafter.token_time
        assert script is not None, "drafts come in sessions"
        if self._ready > now or not session.wants_draft_token:
            return now
        if self._lag > 1:
            now += self.drafter.prompt_token_time * (self._lag - 1)
        start, index = session.num_output_tokens, 0
        while (drafted := script.drafted(start, index)) is not None:
            now += token_time
            index += 1
            if not session.on_draft_token(drafted, now):
                break
        return now
