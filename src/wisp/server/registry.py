"""Which sessions the server holds, for whom: admission, epochs and fencing, orphans, draining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wisp.engines.base import ModelCard
from wisp.errors import InvalidRequest, ServerBusy, SessionFenced, SessionLost
from wisp.policy.scheduler import Scheduler
from wisp.protocol import frames
from wisp.protocol import wisp_pb2 as pb
from wisp.server.loop import VerificationLoop
from wisp.server.sessions import ServerSession, draining, engine_id, error_frame
from wisp.server.stream import DeviceStream
from wisp.types import SLO, GenerationRequest, RetryAfter, SessionDemand

MAX_WAITING_OPERATIONS = 4
"""Opens and closes that may wait for a busy engine, per session that the server takes."""


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    """What one server holds and offers."""

    max_sessions: int
    max_sessions_per_stream: int
    max_history: int
    """Longest history that the engine's context and cache allow."""
    idle_timeout: float
    slo_classes: tuple[SLO, ...]
    default_slo: str
    retry_after: float = 1.0


class SessionRegistry:
    """Sessions by (owner, wire id); owners never see each other's."""

    def __init__(
        self,
        card: ModelCard,
        loop: VerificationLoop,
        scheduler: Scheduler,
        clock: Callable[[], float],
        limits: RegistryLimits,
    ) -> None:
        self.draining = False
        self.num_refused = 0
        """Sessions that were told to come back later, ever."""
        self._card = card
        self._loop = loop
        self._scheduler = scheduler
        self._clock = clock
        self._limits = limits
        self._sessions: dict[tuple[str, int], ServerSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def busy(self) -> bool:
        """Whether a connected device waits for an answer."""
        return any(session.busy for session in self._sessions.values())

    def open(self, stream: DeviceStream, message: pb.Open) -> None:
        """Start a session or take it up again; `Opened` follows when the engine has it. Raises WispError."""
        known = self._sessions.get((stream.owner, message.session))
        if known is not None and message.epoch <= known.epoch:
            self._open_again(stream, known, message.epoch)
            return
        if self.draining:
            raise draining()
        request = self._checked(message)
        slo = self._slo(request.slo)
        try:
            self._admit(stream, known, message.session, request, slo)
        except ServerBusy:
            self.num_refused += 1
            raise
        if known is not None:
            self._fence(known, stream, message.epoch)
        session = ServerSession(
            owner=stream.owner,
            wire_id=message.session,
            epoch=message.epoch,
            request=request,
            slo=slo,
            loop=self._loop,
            clock=self._clock,
            max_history=self._limits.max_history,
            on_failure=self._forget,
            stream=stream,
        )
        stream.sessions.add(message.session)
        self._sessions[stream.owner, message.session] = session
        self._loop.open(session.engine_id, session.owner, request, session.on_opened)

    def get(self, stream: DeviceStream, wire_id: int, epoch: int) -> ServerSession:
        """The session that a frame of `stream` speaks of. Raises SessionLost or SessionFenced."""
        session = self._sessions.get((stream.owner, wire_id))
        if session is None:
            raise SessionLost("the server does not know this session (any more): open it again with its history")
        if epoch == session.epoch and session.stream is None:
            raise SessionLost(f"the stream that held this session broke: open an epoch above {epoch} with its history")
        if epoch < session.epoch or (session.stream is not stream and epoch == session.epoch):
            raise _fenced(session.epoch)
        if epoch > session.epoch:
            raise SessionLost(f"the server has epoch {session.epoch} of this session: open epoch {epoch} first")
        return session

    def close(self, stream: DeviceStream, wire_id: int, epoch: int) -> None:
        """End a session; one that is not (or no longer) this stream's is left alone."""
        session = self._sessions.get((stream.owner, wire_id))
        if session is not None and session.stream is stream and session.epoch == epoch:
            self._drop(session)

    def orphan(self, stream: DeviceStream) -> None:
        """The stream broke: keep its sessions for a while, their device may open them again."""
        for wire_id in tuple(stream.sessions):
            session = self._sessions[stream.owner, wire_id]
            session.let_go()
            session.orphaned_at = self._clock()

    def forget_idle(self) -> None:
        """Drop orphans whose device did not come back in time."""
        oldest = self._clock() - self._limits.idle_timeout
        for session in [one for one in self._sessions.values() if one.orphaned_at <= oldest]:
            self._drop(session)

    def _open_again(self, stream: DeviceStream, known: ServerSession, epoch: int) -> None:
        """An epoch that is not newer than the one the server has."""
        if known.stream is not stream or epoch < known.epoch:
            raise _fenced(known.epoch)
        if known.opened_frame is not None:
            stream.send(known.opened_frame)

    def _checked(self, message: pb.Open) -> GenerationRequest:
        num_tokens, room = len(message.tokens), self._limits.max_history
        if num_tokens > room:
            raise InvalidRequest(f"{num_tokens} tokens of history exceed the {room} that the server can hold", "prompt")
        request = frames.open_from_wire(message, self._card.vocabulary_size)
        if request.num_output_tokens >= request.stop.max_tokens:
            raise InvalidRequest(
                f"all {request.stop.max_tokens} output tokens asked for are in the history already", "max_tokens"
            )
        if not request.sampling.greedy and request.sampling.rule not in self._card.acceptance_rules:
            offered = ", ".join(self._card.acceptance_rules)
            raise InvalidRequest(f"rule {request.sampling.rule} is not offered by this engine ({offered} is)", "rule")
        return request

    def _slo(self, name: str | None) -> SLO:
        wanted = self._limits.default_slo if name is None else name
        slo = next((slo for slo in self._limits.slo_classes if slo.name == wanted), None)
        if slo is None:
            known = ", ".join(slo.name for slo in self._limits.slo_classes)
            raise InvalidRequest(f"unknown SLO class {wanted!r}: the server offers {known}", "slo")
        return slo

    def _admit(
        self, stream: DeviceStream, known: ServerSession | None, wire_id: int, request: GenerationRequest, slo: SLO
    ) -> None:
        if wire_id not in stream.sessions and len(stream.sessions) >= self._limits.max_sessions_per_stream:
            limit = self._limits.max_sessions_per_stream
            raise ServerBusy(f"this stream holds {limit} sessions, the most one may hold", self._limits.retry_after)
        if self._loop.num_waiting_operations > MAX_WAITING_OPERATIONS * self._limits.max_sessions:
            raise ServerBusy("too many sessions wait to be opened", self._limits.retry_after)
        if known is None and len(self._sessions) >= self._limits.max_sessions:
            self._drop_oldest_orphan()
        demand = SessionDemand(
            session_id=engine_id(stream.owner, wire_id),
            num_history_tokens=len(request.tokens),
            max_new_tokens=request.stop.max_tokens - request.num_output_tokens,
            slo=slo,
        )
        answer = self._scheduler.admit(demand, self._clock())
        if isinstance(answer, RetryAfter):
            raise ServerBusy(f"the server is busy: {answer.reason}", answer.retry_after)

    def _drop_oldest_orphan(self) -> None:
        orphans = [session for session in self._sessions.values() if session.stream is None]
        if orphans:
            self._drop(min(orphans, key=lambda session: session.orphaned_at))

    def _fence(self, known: ServerSession, stream: DeviceStream, epoch: int) -> None:
        """End an older epoch; another stream that holds it is told."""
        older = known.let_go()
        if older is not None and older is not stream:
            older.send(error_frame(known.wire_id, known.epoch, _fenced(epoch)))

    def _drop(self, session: ServerSession) -> None:
        self._forget(session)
        self._loop.close(session.engine_id)

    def _forget(self, session: ServerSession) -> None:
        """Take a session from the table, if it is still this epoch that is in it."""
        session.let_go()
        key = session.owner, session.wire_id
        if self._sessions.get(key) is session:
            del self._sessions[key]


def _fenced(epoch: int) -> SessionFenced:
    return SessionFenced(f"epoch {epoch} of this session is held by another stream: only a higher one can take it over")
