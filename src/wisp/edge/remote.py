"""A session on the server, over a connection it shares with others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from wisp.errors import ConnectionLost, InvalidRequest, ProtocolError, SessionLost, WispError
from wisp.protocol import MAX_FRAME_BYTES
from wisp.protocol import wisp_pb2 as pb
from wisp.protocol.frames import decode_to_wire, draft_to_wire, error_from_wire, open_to_wire, verdict_from_wire
from wisp.types import DecodeRequest, DraftRequest, GenerationRequest, Verdict

Mail = pb.Opened | pb.Verdict | WispError


class Connection(Protocol):
    """What a session needs of its connection."""

    @property
    def hello(self) -> pb.ServerHello:
        """What the server said of itself, limits included, when the device last connected."""
        ...

    def send(self, frame: pb.DeviceFrame) -> None:
        """Queue a frame. Raises ConnectionLost."""
        ...

    async def connected(self, within: float | None = None) -> None:
        """Wait for a live stream."""
        ...

    def abandon(self, reason: str) -> None:
        """Take the stream for dead if nobody else hears from the server either."""
        ...

    def forget(self, session: RemoteSession) -> None:
        """Deliver nothing to the session any more."""
        ...


class RemoteSession:
    """A handle to one session: everything that arrives for its current epoch, in order."""

    def __init__(self, connection: Connection, session_id: int, round_timeout: float) -> None:
        self.id = session_id
        self.epoch = 0
        self._connection = connection
        self._round_timeout = round_timeout
        self._mail: asyncio.Queue[Mail] = asyncio.Queue()
        self._open = False

    @property
    def name(self) -> str:
        """The session's id as logs write it."""
        return f"{self.id:016x}"

    def open(self, request: GenerationRequest, epoch: int) -> None:
        """Send the frame that opens the session, or opens it anew. Raises ConnectionLost and InvalidRequest."""
        frame = pb.DeviceFrame(open=open_to_wire(self.id, epoch, request))
        if frame.ByteSize() > (self._connection.hello.max_frame_bytes or MAX_FRAME_BYTES):
            raise InvalidRequest(f"a prompt of {len(request.tokens)} tokens does not fit into one frame", "prompt")
        self.epoch = epoch
        self._mail = asyncio.Queue()
        self._open = True
        self._connection.send(frame)

    async def opened(self) -> None:
        """Wait until the server has taken the session. Raises ServerBusy, InvalidRequest and other errors of the tree."""
        while not isinstance(await self.receive(), pb.Opened):
            pass

    def ask(self, request: DraftRequest | DecodeRequest) -> Verdicts:
        """Send a round at once; returns its verdicts. Raises ConnectionLost.

        A draft is cut where the server's limit ends it: a restarted server may allow less than the one before it.
        """
        if isinstance(request, DraftRequest):
            limit = self._connection.hello.max_draft_tokens
            request = replace(request, tokens=request.tokens[:limit], survival=request.survival[:limit])
            frame = pb.DeviceFrame(draft=draft_to_wire(self.id, self.epoch, request))
        else:
            frame = pb.DeviceFrame(decode=decode_to_wire(self.id, self.epoch, request))
        self._connection.send(frame)
        return Verdicts(self, request)

    def close(self) -> None:
        """End the session, on the server too; needs no answer."""
        self._connection.forget(self)
        if not self._open:
            return
        self._open = False
        try:
            self._connection.send(pb.DeviceFrame(close=pb.Close(session=self.id, epoch=self.epoch)))
        except ConnectionLost:
            return  # the server closes what a lost stream leaves behind

    async def connected(self, within: float | None = None) -> None:
        """Wait for a connection to the server that the session started on, or one that serves the same model."""
        await self._connection.connected(within)

    async def receive(self) -> pb.Opened | pb.Verdict:
        """The next frame for this session; raises what an error frame says, ConnectionLost after long silence."""
        try:
            async with asyncio.timeout(self._round_timeout):
                mail = await self._mail.get()
        except TimeoutError:
            reason = f"no verdict for {self._round_timeout:g} s"
            self._connection.abandon(reason)
            raise ConnectionLost(reason) from None
        if isinstance(mail, WispError):
            raise mail
        return mail

    def deliver(self, frame: pb.Opened | pb.Verdict | pb.Error) -> None:
        """Take a frame that names this session; those of an older epoch come too late."""
        if frame.epoch == self.epoch:
            self._mail.put_nowait(error_from_wire(frame) if isinstance(frame, pb.Error) else frame)

    def fail(self, error: WispError) -> None:
        """Have whoever waits for a frame hear that none will come."""
        self._mail.put_nowait(error)


class Verdicts:
    """The verdicts of one round as they arrive; those of other rounds, and repeated ones, are left out."""

    def __init__(self, session: RemoteSession, request: DraftRequest | DecodeRequest) -> None:
        self._session = session
        self._request = request
        self._num_committed = request.num_committed
        self._over = False

    def __aiter__(self) -> Verdicts:
        return self

    async def __anext__(self) -> Verdict:
        if self._over:
            raise StopAsyncIteration
        while True:
            frame = await self._session.receive()
            if isinstance(frame, pb.Verdict) and frame.round == self._request.round:
                verdict = verdict_from_wire(frame)
                if frame.num_committed == self._num_committed:
                    return self._take(verdict)
                if not verdict.num_accepted and verdict.next_token is None:
                    raise SessionLost(
                        f"the server's history has {frame.num_committed} tokens, this device's {self._num_committed}"
                    )

    def _take(self, verdict: Verdict) -> Verdict:
        num_drafted = len(self._request.tokens) if isinstance(self._request, DraftRequest) else 0
        if verdict.num_verified > num_drafted:
            raise ProtocolError(f"{verdict.num_verified} tokens verified of a draft of {num_drafted}")
        self._num_committed += verdict.num_accepted + (verdict.next_token is not None)
        self._over = verdict.final or verdict.finish_reason is not None
        return verdict
