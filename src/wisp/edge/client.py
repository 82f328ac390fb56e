"""The connection to the server: one stream, many sessions, restored for as long as the device runs."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from wisp import __version__
from wisp.config import EdgeConfig
from wisp.edge.channel import check_security, metadata, open_channel, uses_tls
from wisp.edge.remote import RemoteSession
from wisp.edge.stream import FrameStream, wire_errors
from wisp.edge.target import TargetInfo, target_info
from wisp.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionLost,
    DeviceClosing,
    FormatError,
    ProtocolError,
    VersionMismatch,
    VocabularyMismatch,
    WispError,
)
from wisp.logs import logger
from wisp.protocol import MAX_FRAME_BYTES, PROTOCOL_VERSION
from wisp.protocol import wisp_pb2 as pb
from wisp.protocol.frames import error_from_wire
from wisp.protocol.padding import padded
from wisp.protocol.wisp_pb2_grpc import VerifierStub

log = logger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
_REFUSALS = (AuthenticationFailed, VersionMismatch, VocabularyMismatch, ConfigError, FormatError, ProtocolError)
"""Failures that a later attempt is unlikely to cure: whoever waits for the connection hears of them at once."""


class ServerConnection:
    """A stream to the server that is opened again whenever it breaks; sessions share it.

    `start` it, take sessions from it, `close` it. `vocabulary`, the drafter's fingerprint, may be set once it is known.
    """

    def __init__(
        self,
        config: EdgeConfig,
        *,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        check_security(config)
        self.vocabulary = ""
        self._config = config
        self._jitter = jitter
        self._sleep = sleep
        self._hello: pb.ServerHello | None = None
        self._target: TargetInfo | None = None
        self._instance = ""
        self._stream: FrameStream | None = None
        self._sessions: dict[int, RemoteSession] = {}
        self._settled = asyncio.Event()
        """Set while there is a stream, or a refusal."""
        self._failure: WispError = ConnectionLost("no answer yet")
        self._num_failures = 0
        self._last_frame_at = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def hello(self) -> pb.ServerHello:
        """What the server said of itself when the device last connected. Raises what kept it from connecting at all."""
        if self._hello is None:
            raise self._failure
        return self._hello

    @property
    def target(self) -> TargetInfo:
        """The model of `hello`: always the same, on terms that a restarted server may have changed."""
        if self._target is None:
            raise self._failure
        return self._target

    @property
    def is_up(self) -> bool:
        """Whether there is a live stream."""
        return self._stream is not None

    async def start(self) -> None:
        """Connect for the first time. Raises ConnectionLost, AuthenticationFailed, VersionMismatch, ConfigError."""
        self._task = asyncio.create_task(self._keep_connected())
        try:
            await self.connected(self._config.connect_timeout)
        except ConnectionLost as error:
            await self.close()
            hint = "" if uses_tls(self._config) else " If it asks for TLS, give --ca-fingerprint as it printed it."
            raise ConnectionLost(f"{str(error).rstrip('.')}. Is `wisp serve` running there?{hint}") from None
        except WispError:
            await self.close()
            raise

    async def connected(self, within: float | None = None) -> None:
        """Wait for a live stream to a server of the same model.

        Raises ConnectionLost after `within` seconds, and the server's refusal if it refuses this device.
        """
        try:
            async with asyncio.timeout(within):
                await self._settled.wait()
        except TimeoutError:
            raise ConnectionLost(
                f"no connection to {self._config.server} within {within:g} s: {self._failure}"
            ) from None
        if self._stream is None:
            raise self._failure

    def session(self) -> RemoteSession:
        """A handle to a new session; nothing is sent before it is opened."""
        session_id = secrets.randbits(64) or 1
        session = self._sessions[session_id] = RemoteSession(self, session_id, self._config.round_timeout)
        return session

    def send(self, frame: pb.DeviceFrame) -> None:
        """Queue a frame. Raises ConnectionLost."""
        if self._stream is None:
            raise ConnectionLost(str(self._failure))
        self._stream.send(frame)

    def abandon(self, reason: str) -> None:
        """Take the stream for dead, so that it is opened again; unless others still hear from the server."""
        silence = asyncio.get_running_loop().time() - self._last_frame_at
        if silence >= self._config.round_timeout:
            self._abort(ConnectionLost(reason))

    def forget(self, session: RemoteSession) -> None:
        """Deliver nothing to the session any more."""
        self._sessions.pop(session.id, None)

    async def close(self) -> None:
        """End the stream and stop restoring it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lose(DeviceClosing("the device is shutting down"))
        self._settled.set()  # whoever waits for a connection waits in vain

    async def fetch_tokenizer(self) -> bytes:
        """The target's tokenizer.json from the server. Raises ConnectionLost and ProtocolError."""
        size = self.hello.tokenizer_bytes
        received = bytearray()
        channel = await open_channel(self._config)
        try:
            with wire_errors():
                call = _stub(channel).FetchTokenizer(pb.TokenizerRequest(), metadata=metadata(self._config))
                async for chunk in call:
                    received += chunk.data
                    if len(received) > size:
                        raise ProtocolError(f"the tokenizer is longer than the {size} bytes that the server announced")
        finally:
            await channel.close()
        return bytes(received)

    async def _keep_connected(self) -> None:
        while True:
            try:
                await self._connect_once()
            except WispError as error:
                self._lose(error)
            except Exception as error:
                log.exception("the connection failed in an unforeseen way", server=self._config.server)
                self._lose(ConnectionLost(repr(error)))
            pause = min(FIRST_PAUSE * 2.0**self._num_failures, LONGEST_PAUSE) * (0.5 + 0.5 * self._jitter())
            self._num_failures += 1
            log.warning("trying again", in_s=round(pause, 1), server=self._config.server, reason=str(self._failure))
            await self._sleep(pause)

    async def _connect_once(self) -> None:
        """Connect and carry frames until the stream ends; always raises."""
        channel = await open_channel(self._config)
        try:
            call = connect(channel, metadata(self._config), padding=uses_tls(self._config))
            stream = FrameStream(call, self._config.emulated_rtt / 2.0, self._on_frame)
            self._welcome(await stream.greet(self._device_hello(), self._config.connect_timeout))
            self._stream = stream
            self._last_frame_at = asyncio.get_running_loop().time()
            self._settled.set()
            await stream.run()
        finally:
            await channel.close()

    def _device_hello(self) -> pb.DeviceHello:
        return pb.DeviceHello(protocol_version=PROTOCOL_VERSION, wisp_version=__version__, vocabulary=self.vocabulary)

    def _welcome(self, hello: pb.ServerHello) -> None:
        """Compare a server's hello with what this device, and its running generations, were told before."""
        if hello.protocol_version != PROTOCOL_VERSION:
            raise VersionMismatch(
                f"the server speaks version {hello.protocol_version} of the protocol (wisp {hello.wisp_version}), "
                f"this device version {PROTOCOL_VERSION} (wisp {__version__}): update the older one"
            )
        known = self._hello or hello
        if (hello.model_id, hello.vocabulary) != (known.model_id, known.vocabulary):
            raise VocabularyMismatch(
                f"the server now serves {hello.model_id} (vocabulary {hello.vocabulary}), this device was started for "
                f"{known.model_id} (vocabulary {known.vocabulary}): restart the device"
            )
        event = "connected" if self._hello is None else "connected again to the server"
        if self._instance not in ("", hello.instance):
            event = "connected again to the server, which was restarted"
        log.info(event, server=self._config.server, model=hello.model_id)
        self._hello, self._target = hello, target_info(hello)
        self._instance = hello.instance

    def _on_frame(self, frame: pb.ServerFrame) -> None:
        self._last_frame_at = asyncio.get_running_loop().time()
        body = frame.WhichOneof("body")
        if body == "error":
            self._on_error(frame.error)
        elif body in ("opened", "verdict"):
            self._num_failures = 0
            message = frame.opened if body == "opened" else frame.verdict
            if message.session in self._sessions:
                self._sessions[message.session].deliver(message)

    def _on_error(self, error: pb.Error) -> None:
        """An error of one session is its own; without a session, or from a server that drains, it ends the stream."""
        if error.session == 0 or error.code == pb.ERROR_CODE_DRAINING:
            self._abort(error_from_wire(error))
        elif error.session in self._sessions:
            self._sessions[error.session].deliver(error)

    def _abort(self, error: WispError) -> None:
        if self._stream is not None:
            self._stream.abort(error)

    def _lose(self, error: WispError) -> None:
        """Note that there is no stream, tell the sessions, and whoever waits if the server does not want us."""
        was_up, self._stream = self._stream is not None, None
        self._failure = error
        if isinstance(error, _REFUSALS):
            self._settled.set()
        else:
            self._settled.clear()
        if was_up:
            lost = ConnectionLost(f"lost the connection to {self._config.server}: {error}")
            for session in self._sessions.values():
                session.fail(lost)


def connect(channel: Any, credentials: tuple[tuple[str, str], ...], *, padding: bool) -> Any:
    """A stream to the server; `padding` fills its frames up to a few sizes, since lengths show even under TLS."""
    service = pb.DESCRIPTOR.services_by_name["Verifier"]
    stream = channel.stream_stream(
        f"/{service.full_name}/{service.methods_by_name['Connect'].name}",
        request_serializer=_padded if padding else pb.DeviceFrame.SerializeToString,
        response_deserializer=pb.ServerFrame.FromString,
    )
    return stream(metadata=credentials)


def _padded(frame: pb.DeviceFrame) -> bytes:
    data = frame.SerializeToString()
    filled = padded(data)
    return filled if len(filled) <= MAX_FRAME_BYTES else data


def _stub(channel: Any) -> Any:
    return VerifierStub(channel)  # type: ignore[no-untyped-call]
