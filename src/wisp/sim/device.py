"""A device in virtual time: one session after the other, each driven by the live `policy.session.Session`.

Nothing reaches a device while it drafts, so a whole draft is one event: the stop rule runs at its start, with the times
at which its tokens are going to be there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from wisp.policy.controller import StopRule
from wisp.policy.measurements import Measurements
from wisp.policy.session import Session, SessionSettings
from wisp.sim.events import Events
from wisp.sim.network import Link
from wisp.sim.script import SessionScript
from wisp.sim.verifier import ServedSession, Verifier
from wisp.types import Admitted, DecodeRequest, DraftRequest, Verdict


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


@dataclass(slots=True, eq=False)
class Device:
    """One device with its two links to the server; `ended` is called with each session that is over."""

    name: str
    events: Events
    verifier: Verifier
    rules: DeviceRules
    drafter: Drafter
    uplink: Link
    downlink: Link
    ended: Callable[[Device, Session, bool], None]
    """(device, session, admitted)"""
    num_sessions: int = field(default=0, init=False)
    session: Session | None = field(default=None, init=False)
    script: SessionScript | None = field(default=None, init=False)
    _served: ServedSession | None = field(default=None, init=False)
    _earlier: Measurements | None = field(default=None, init=False)
    """Of the session before."""
    _ready: float = field(default=0.0, init=False)
    """When the drafter has read the prompt."""
    _lag: int = field(default=0, init=False)
    """Tokens that came without a draft and that the drafter has yet to read."""

    def start(self, script: SessionScript) -> None:
        """Begin a session: the open and the first request leave in the same breath."""
        now = self.events.now
        rules = self.rules
        self.num_sessions += 1
        generation = script.generation(rules.max_new_tokens)
        session = Session(generation, rules.stop_rule, rules.settings, script.slo, now, self._earlier)
        self.script, self.session, self._earlier = script, session, session.measured
        name = f"{self.name}:{self.num_sessions}"
        self._served = ServedSession(name, script, rules.max_new_tokens, self._send_verdict)
        self._ready = now + self.drafter.prompt_token_time * script.num_prompt_tokens
        self._lag = 0
        self.session.begin_round(now)
        request = self.session.request(now, may_draft=rules.drafts)
        self.events.at(self.uplink.arrival(now), self._open, (self._served, request))

    def _open(self, message: tuple[ServedSession, DraftRequest | DecodeRequest]) -> None:
        served, request = message
        if isinstance(self.verifier.open(served), Admitted):
            self.verifier.ask(served, request)
        else:
            self.events.at(self.downlink.arrival(self.events.now), self._refused)

    def _ask(self, message: tuple[ServedSession, DraftRequest | DecodeRequest]) -> None:
        self.verifier.ask(*message)

    def _send_verdict(self, verdict: Verdict) -> None:
        self.events.at(self.downlink.arrival(self.events.now), self._on_verdict, verdict)

    def _refused(self, _: None) -> None:
        self._end(admitted=False)

    def _on_verdict(self, verdict: Verdict) -> None:
        session, served, now = self.session, self._served, self.events.now
        assert session is not None, "verdicts come in sessions"
        assert served is not None, "verdicts come from a server"
        drafted = bool(session.draft)
        committed = session.on_verdict(verdict, now)
        self._lag = 0 if drafted else self._lag + len(committed)
        if session.finish_reason is not None:
            self.events.at(self.uplink.arrival(now), self.verifier.close, served)
            self._end(admitted=True)
        elif verdict.final:
            self._next_round(session, served, now)

    def _next_round(self, session: Session, served: ServedSession, now: float) -> None:
        session.begin_round(now)
        sent = self._draft(session, now) if self.rules.drafts else now
        request = session.request(sent, may_draft=self.rules.drafts)
        self.events.at(self.uplink.arrival(sent), self._ask, (served, request))

    def _draft(self, session: Session, now: float) -> float:
        """Draft as the stop rule wants it, after catching up; returns when the draft is complete."""
        script, token_time = self.script, self.drafter.token_time
        assert script is not None, "drafts come in sessions"
        if self._ready > now:
            return now
        start = session.num_output_tokens
        now += self.drafter.prompt_token_time * max(self._lag - 1, 0) if session.wants_draft_token else 0.0
        index = 0
        while session.wants_draft_token and (drafted := script.drafted(start, index)) is not None:
            now += token_time
            session.on_draft_token(drafted, now)
            index += 1
        return now

    def _end(self, *, admitted: bool) -> None:
        session, self.session = self.session, None
        assert session is not None, "only sessions end"
        self.ended(self, session, admitted)
