"""The gRPC service: one stream per device, hello first, then frames for many sessions.

A frame that cannot be understood ends its own stream with an Error; a frame that is wrong for its session is answered
by an Error that names the session. Neither touches any other stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from wisp.engines.base import ModelCard
from wisp.errors import (
    AuthenticationFailed,
    EngineError,
    PeerError,
    ProtocolError,
    WispError,
)
from wisp.logs import logger
from wisp.protocol import MAX_FRAME_BYTES, frames
from wisp.protocol import wisp_pb2 as pb
from wisp.server.hello import check_hello
from wisp.server.registry import SessionRegistry
from wisp.server.security import Credentials
from wisp.server.sessions import draining, error_frame
from wisp.server.stream import DeviceStream

log = logger(__name__)
_END: Any = vars(grpc.aio)["EOF"]
TOKENIZER_CHUNK_BYTES = 256 << 10
HELLO_TIMEOUT = 10.0
LINGER = 1.0
"""Seconds that a device gets to read why its stream ends and to leave by itself: gRPC clients that write to a stream
which has ended may lose what they have not read yet."""


class VerifierService:
    """Serves devices; every method runs on the event loop."""

    def __init__(
        self,
        card: ModelCard,
        registry: SessionRegistry,
        credentials: Credentials,
        hello: pb.ServerHello,
        stall_timeout: float = 30.0,
        *,
        padding: bool = False,
    ) -> None:
        self._card = card
        self._registry = registry
        self._credentials = credentials
        self._hello = hello
        self._stall_timeout = stall_timeout
        self._padding = padding
        self._streams: set[DeviceStream] = set()

    def handler(self) -> Any:
        """What a gRPC server is given. Messages pass as bytes: a bad one must become an Error frame, not a crash."""
        methods = {
            "Connect": grpc.stream_stream_rpc_method_handler(self.connect),
            "FetchTokenizer": grpc.unary_stream_rpc_method_handler(self.fetch_tokenizer),
        }
        return grpc.method_handlers_generic_handler(pb.DESCRIPTOR.services_by_name["Verifier"].full_name, methods)

    def close_streams(self) -> None:
        """Tell every device to go elsewhere, and end its stream."""
        for stream in self._streams:
            stream.end(error_frame(0, 0, draining()))

    async def connect(self, _requests: object, context: Any) -> None:
        """Serve one device until it leaves, breaks the protocol, stops reading or the server closes."""
        stream = DeviceStream(await self._authenticate(context), self._padding)
        self._streams.add(stream)
        log.info("device connected", owner=stream.owner, peer=context.peer(), streams=len(self._streams))
        writer = asyncio.create_task(_write(stream, context))
        reader = asyncio.create_task(self._read(stream, context))
        over = asyncio.create_task(stream.over.wait())
        tasks: list[asyncio.Task[Any]] = [writer, reader, over]
        timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT, _expect_hello, stream)
        try:
            await self._until_over(stream, tasks)
            self._registry.orphan(stream)
            # A status cannot pass a frame that is stuck in the transport. So the call stays, holding nothing but that
            # frame, until the device reads it, its connection breaks or the server stops.
            flushed = asyncio.create_task(stream.flushed())
            tasks.append(flushed)
            await asyncio.wait({flushed, writer}, return_when=asyncio.FIRST_COMPLETED)
            if stream.over.is_set():
                await asyncio.wait({reader}, timeout=LINGER)
        finally:
            timer.cancel()
            self._streams.discard(stream)
            self._registry.orphan(stream)
            await _end(tasks)
            log.info("device gone", owner=stream.owner, peer=context.peer(), streams=len(self._streams))

    async def fetch_tokenizer(self, _request: bytes, context: Any) -> AsyncIterator[bytes]:
        """The target's tokenizer in chunks."""
        await self._authenticate(context)
        data = self._card.tokenizer_json
        for start in range(0, len(data), TOKENIZER_CHUNK_BYTES):
            yield pb.TokenizerChunk(data=data[start : start + TOKENIZER_CHUNK_BYTES]).SerializeToString()

    async def _authenticate(self, context: Any) -> str:
        """The name of the credential that the device shows."""
        try:
            return self._credentials.owner(context.invocation_metadata(), context.auth_context())
        except AuthenticationFailed as error:
            log.warning("device refused", peer=context.peer(), reason=str(error))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise

    async def _until_over(self, stream: DeviceStream, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Wait until a task ends, or the device has read nothing for too long."""
        clock = asyncio.get_running_loop().time
        while not (await asyncio.wait(tasks, timeout=self._stall_timeout / 4, return_when=asyncio.FIRST_COMPLETED))[0]:
            if stream.writing_for(clock()) > self._stall_timeout:
                log.warning("device does not read: given up", owner=stream.owner, waiting=stream.num_waiting)
                stream.discard()
                return

    async def _read(self, stream: DeviceStream, context: Any) -> None:
        """Act on frames until the device is done; once the stream is over they are only taken off the wire."""
        while (data := await context.read()) is not _END:
            if not stream.over.is_set():
                self._receive(stream, data)
            await stream.relieved()

    def _receive(self, stream: DeviceStream, data: bytes) -> None:
        """One frame; what cannot be understood ends the stream."""
        try:
            frame = _parse(data)
            if stream.greeted:
                self._take(stream, frame)
            else:
                self._greet(stream, frame)
        except PeerError as error:
            log.warning("stream ended", owner=stream.owner, reason=str(error))
            stream.end(error_frame(0, 0, error))

    def _greet(self, stream: DeviceStream, frame: pb.DeviceFrame) -> None:
        """Compare both ends and answer the hello. Raises PeerError."""
        if frame.WhichOneof("body") != "hello":
            raise ProtocolError(f"the first frame must be the hello, not {frame.WhichOneof('body')}")
        check_hello(frame.hello, self._hello)
        stream.greeted = True
        stream.send(pb.ServerFrame(hello=self._hello).SerializeToString())

    def _take(self, stream: DeviceStream, frame: pb.DeviceFrame) -> None:
        """Act on one frame; what is wrong with it is told to its session. Raises PeerError."""
        kind = frame.WhichOneof("body")
        if kind is None or kind == "hello":
            raise ProtocolError("a second hello" if kind else "a frame without a body that this server knows")
        message = getattr(frame, kind)
        if message.session == 0:
            raise ProtocolError(f"{kind}: session 0 is reserved for the stream")
        try:
            self._dispatch(stream, message)
        except WispError as error:
            stream.send(error_frame(message.session, message.epoch, error))
        except Exception as error:
            log.exception("a frame could not be handled", kind=kind, owner=stream.owner)
            failure = EngineError(f"the server failed on this {kind}: {type(error).__name__}")
            stream.send(error_frame(message.session, message.epoch, failure))

    def _dispatch(self, stream: DeviceStream, message: pb.Open | pb.Draft | pb.Decode | pb.Cancel | pb.Close) -> None:
        if isinstance(message, pb.Open):
            self._registry.open(stream, message)
            return
        if isinstance(message, pb.Close):
            self._registry.close(stream, message.session, message.epoch)
            return
        session = self._registry.get(stream, message.session, message.epoch)
        if isinstance(message, pb.Cancel):
            session.on_cancel(message.round)
            return
        if self._registry.draining:
            raise draining()
        if isinstance(message, pb.Draft):
            session.on_request(
                frames.draft_from_wire(message, self._card.vocabulary_size, self._hello.max_draft_tokens)
            )
        else:
            session.on_request(frames.decode_from_wire(message))


def _parse(data: bytes) -> pb.DeviceFrame:
    if len(data) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(data)} bytes exceeds the {MAX_FRAME_BYTES} that this server takes")
    try:
        return pb.DeviceFrame.FromString(data)
    except DecodeError:
        raise ProtocolError(f"{len(data)} bytes that are no DeviceFrame") from None


async def _write(stream: DeviceStream, context: Any) -> None:
    """Write what waits, one frame after the other."""
    clock = asyncio.get_running_loop().time
    while True:
        frame = await stream.next_frame()
        stream.writing_since = clock()
        await context.write(frame)
        stream.writing_since = None


def _expect_hello(stream: DeviceStream) -> None:
    """A connection that says nothing must not stay."""
    if not stream.greeted:
        stream.end(error_frame(0, 0, ProtocolError(f"no hello within {HELLO_TIMEOUT:g} s")))


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and collect what they raise: of a broken connection all sorts of things."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
