"""What the protocol promises about the rounds of one session: replays, stale drafts, cancels, plain decoding.

No socket and no thread: frames come in as values, frames go out through `DeviceStream.send`.

A round is answered once. Its frames are kept until the next round and repeated byte for byte when the device asks
again; every round ends with exactly one final verdict (or an error).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf

from wisp.engines.base import StepOutcome
from wisp.errors import ConnectionLost, EngineError, ProtocolError, WispError
from wisp.protocol import frames
from wisp.protocol import wisp_pb2 as pb
from wisp.server.loop import Round, VerificationLoop
from wisp.server.stream import DeviceStream
from wisp.types import (
    SLO,
    DecodeRequest,
    DraftRequest,
    FinishReason,
    GenerationRequest,
    Hints,
    SessionId,
    Verdict,
)


@dataclass(slots=True)
class _Pending:
    """The newest round, while the engine is busy with the one before (or with opening)."""

    request: DraftRequest | DecodeRequest
    arrival: float
    cancelled: bool = False


@dataclass(slots=True)
class _Running:
    """The round that is queued, in the engine, or held up by a congested stream."""

    request: DraftRequest | DecodeRequest
    tokens_left: int
    """Verdicts still to come: 1 for a draft."""
    deadline: float
    stopped: bool = False
    """No more verdicts than the one the engine is computing."""
    paused: bool = False
    """The stream is congested: nothing is queued."""


@dataclass(slots=True, eq=False)
class ServerSession:
    """One epoch of one session, held by one stream."""

    owner: str
    wire_id: int
    epoch: int
    request: GenerationRequest
    slo: SLO
    loop: VerificationLoop
    clock: Callable[[], float]
    max_history: int
    """Longest history the engine can verify on: its context, or what its cache holds."""
    on_failure: Callable[[ServerSession], None]
    """Called when the engine gave the session up."""
    stream: DeviceStream | None
    """None once the stream broke: an orphan, waiting for its device to open it again."""
    num_tokens: int = field(init=False)
    round: int = field(default=0, init=False)
    opened_frame: bytes | None = field(default=None, init=False)
    """None until the engine has opened it."""
    finish_reason: FinishReason | None = field(default=None, init=False)
    orphaned_at: float = field(default=inf, init=False)
    _frames: list[bytes] = field(default_factory=list, init=False)
    """The answer to the current round, as far as it was given."""
    _running: _Running | None = field(default=None, init=False)
    _pending: _Pending | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.num_tokens = len(self.request.tokens)

    @property
    def engine_id(self) -> SessionId:
        """What loop, scheduler and engine know it by."""
        return engine_id(self.owner, self.wire_id)

    @property
    def busy(self) -> bool:
        """Whether its device waits for something."""
        return self.stream is not None and (
            self.opened_frame is None or self._running is not None or self._pending is not None
        )

    # What the device sends

    def on_request(self, request: DraftRequest | DecodeRequest) -> None:
        """Take a draft or a decode. Raises ProtocolError."""
        _require(request.round > 0, "rounds are counted from 1")
        newest = self.round if self._pending is None else self._pending.request.round
        if request.round < newest:
            return
        if request.round == newest:
            self._repeat()
            return
        if self.opened_frame is not None:
            self._stop_running()
        if self._pending is not None:
            self._send_null(self._pending.request, keep=False)
        self._pending = _Pending(request, self.clock())
        if self.opened_frame is not None and self._running is None:
            self._start_pending()

    def on_cancel(self, round_number: int) -> None:
        """End a round early; what the engine is computing already still counts."""
        if self._pending is not None and self._pending.request.round == round_number:
            self._pending.cancelled = True
        elif self._running is not None and self.round == round_number:
            self._stop_running()

    def on_opened(self, num_cached: int | WispError) -> None:
        """Tell the device what the engine said to its open, and go on with what was asked in the meantime."""
        if isinstance(num_cached, WispError):
            self._pending = None
            self._send(pb.ServerFrame(error=frames.error_to_wire(self.wire_id, self.epoch, num_cached)))
            self.on_failure(self)
            return
        frame = pb.ServerFrame(
            opened=pb.Opened(session=self.wire_id, epoch=self.epoch, num_cached_tokens=num_cached)
        ).SerializeToString()
        self.opened_frame = frame
        if self.stream is not None:
            self.stream.send(frame)
        self._start_pending()

    def let_go(self) -> DeviceStream | None:
        """Take the session from its stream, which broke or was fenced; returns that stream."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.sessions.discard(self.wire_id)
        self._pending = None
        if self._running is not None and (self._running.paused or self.loop.cancel(self.engine_id)):
            self._running = None
        return stream

    # Rounds

    def _start_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self.round, self._frames = pending.request.round, []
        if pending.cancelled:
            self._send_null(pending.request)
        else:
            self._start(pending.request, pending.arrival)

    def _start(self, request: DraftRequest | DecodeRequest, arrival: float) -> None:
        try:
            self._check(request)
        except ProtocolError as error:
            self._send(pb.ServerFrame(error=frames.error_to_wire(self.wire_id, self.epoch, error)))
            return
        if self.finish_reason is not None or request.num_committed < self.num_tokens:
            self._send_null(request)
            return
        tokens_left = request.num_tokens if isinstance(request, DecodeRequest) else 1
        self._running = _Running(request, tokens_left, deadline=arrival + request.time_left - request.rtt)
        self._submit(self._running, arrival)

    def _check(self, request: DraftRequest | DecodeRequest) -> None:
        _require(
            request.num_committed <= self.num_tokens,
            f"round {request.round} continues a history of {request.num_committed} tokens, but the server has "
            f"{self.num_tokens}: open the session again with the whole history",
        )

    def _submit(self, running: _Running, arrival: float) -> None:
        request = running.request
        draft = request.tokens if isinstance(request, DraftRequest) else ()
        draft = draft[: max(self.max_history - self.num_tokens, 0)]
        self.loop.submit(
            Round(
                session_id=self.engine_id,
                number=request.round,
                draft=draft,
                deliver=partial(self._on_outcome, running),
                arrival=arrival,
                survival=request.survival[: len(draft)] if isinstance(request, DraftRequest) else (),
                deadline=running.deadline,
                slo=self.slo,
                max_own_draft=self._max_own_draft(running),
            )
        )

    def _max_own_draft(self, running: _Running) -> int:
        """Tokens that the server may draft itself: a round of plain decoding ends with one of the target's own."""
        if isinstance(running.request, DraftRequest):
            return 0
        return max(min(running.tokens_left - 1, self.max_history - self.num_tokens), 0)

    def _on_outcome(self, running: _Running, outcome: StepOutcome | EngineError, hints: Hints) -> None:
        if isinstance(outcome, EngineError):
            self._running = self._pending = None
            self._send(pb.ServerFrame(error=frames.error_to_wire(self.wire_id, self.epoch, outcome)))
            self.on_failure(self)
            return
        before = self.num_tokens
        self.num_tokens += outcome.num_committed
        self.finish_reason = outcome.finish_reason
        if self.finish_reason is None and self.num_tokens > self.max_history:
            self.finish_reason = FinishReason.LENGTH
        running.tokens_left -= 1 + len(outcome.own_tokens)
        last = running.tokens_left == 0 or self.finish_reason is not None
        self._send_verdicts(before, outcome, hints, final=last)
        if last or running.stopped or self.stream is None:
            if not last:
                self._send_null(running.request, self.num_tokens)
            self._running = None
            self._start_pending()
        else:
            self._decode_on(running, outcome.num_committed)

    def _decode_on(self, running: _Running, num_committed: int) -> None:
        """The next token of a plain decoding round, due one token time after the one before."""
        running.deadline += num_committed / self.slo.tokens_per_s
        if self.stream is not None and self.stream.congested:
            running.paused = True
            self.stream.on_relief.append(lambda: self._resume(running))
        else:
            self._submit(running, self.clock())

    def _resume(self, running: _Running) -> None:
        if self._running is running and running.paused:
            running.paused = False
            self._submit(running, self.clock())

    def _stop_running(self) -> None:
        """End the running round now if it only waits; otherwise when the engine is done with it."""
        running = self._running
        if running is None:
            return
        if running.paused or self.loop.cancel(self.engine_id):
            self._running = None
            self._send_null(running.request, self.num_tokens)
        else:
            running.stopped = True

    # Frames

    def _send_verdicts(self, before: int, outcome: StepOutcome, hints: Hints, *, final: bool) -> None:
        """One on the device's draft; where the server drafted itself, one per token."""
        parts = _token_by_token(outcome) if outcome.own_tokens else [outcome]
        for part in parts[:-1]:
            self._send_verdict(before, part, hints, None, final=False)
            before += part.num_committed
        self._send_verdict(before, parts[-1], hints, self.finish_reason, final=final)

    def _send_verdict(
        self, before: int, outcome: StepOutcome, hints: Hints, finish_reason: FinishReason | None, *, final: bool
    ) -> None:
        verdict = Verdict(
            round=self.round,
            num_verified=outcome.num_verified,
            num_accepted=outcome.num_accepted,
            next_token=outcome.next_token,
            logprobs=outcome.logprobs,
            finish_reason=finish_reason,
            final=final,
            hints=hints,
        )
        self._send(pb.ServerFrame(verdict=frames.verdict_to_wire(self.wire_id, self.epoch, before, verdict)))

    def _send_null(
        self, request: DraftRequest | DecodeRequest, num_committed: int | None = None, *, keep: bool = True
    ) -> None:
        """End a round with a verdict that commits nothing, on the history that the device expects it for."""
        verdict = Verdict(request.round, 0, 0, None, finish_reason=self.finish_reason)
        before = request.num_committed if num_committed is None else num_committed
        message = frames.verdict_to_wire(self.wire_id, self.epoch, before, verdict)
        self._send(pb.ServerFrame(verdict=message), keep=keep)

    def _send(self, frame: pb.ServerFrame, *, keep: bool = True) -> None:
        data = frame.SerializeToString()
        if keep:
            self._frames.append(data)
        if self.stream is not None:
            self.stream.send(data)

    def _repeat(self) -> None:
        """Answer a round that was asked again; one that is still running answers itself."""
        if self._running is None and self._pending is None and self.stream is not None:
            for data in self._frames:
                self.stream.send(data)


def _token_by_token(outcome: StepOutcome) -> list[StepOutcome]:
    """The tokens that plain decoding committed at once, each as an outcome of its own."""
    tokens = [*outcome.own_tokens, *(() if outcome.next_token is None else (outcome.next_token,))]
    return [StepOutcome(next_token=token, logprobs=outcome.logprobs[i : i + 1]) for i, token in enumerate(tokens)]


def engine_id(owner: str, wire_id: int) -> SessionId:
    """The key of a session among those of all owners: two owners may have drawn the same wire id."""
    return f"{owner}/{wire_id:016x}"


def error_frame(session: int, epoch: int, error: WispError) -> bytes:
    """An Error frame; session 0 is the whole stream."""
    return pb.ServerFrame(error=frames.error_to_wire(session, epoch, error)).SerializeToString()


def draining() -> ConnectionLost:
    """What a device is told by a server that is about to stop."""
    return ConnectionLost("the server is shutting down: open the session again on another server, or later")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProtocolError(message)
