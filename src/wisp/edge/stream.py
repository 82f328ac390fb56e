"""One gRPC stream to the server: frames out in order, frames in to a callback, each way delayed if told to."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, TypeVar

import grpc
import grpc.aio

from wisp.errors import AuthenticationFailed, ConnectionLost, ProtocolError, WispError
from wisp.protocol import wisp_pb2 as pb
from wisp.protocol.frames import error_from_wire

_T = TypeVar("_T")

_END: Any = vars(grpc.aio)["EOF"]
_UNREACHED = re.compile(
    r"failed to connect to all addresses; last error: \w+: (ipv[46]:\S+: )?(?P<reason>.+)", re.DOTALL
)
"""What gRPC says where there is nobody; the address is known to whoever reads it."""
_CREDENTIAL_CODES = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class DelayLine(Generic[_T]):
    """A queue whose items come out in order, each `delay` seconds after it went in."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._items: asyncio.Queue[tuple[float, _T]] = asyncio.Queue()

    def put(self, item: _T) -> None:
        self._items.put_nowait((asyncio.get_running_loop().time() + self._delay, item))

    async def get(self) -> _T:
        due, item = await self._items.get()
        if self._delay > 0.0:
            await asyncio.sleep(due - asyncio.get_running_loop().time())
        return item


class FrameStream:
    """A live stream; `run` lasts as long as it does and raises why it ended."""

    def __init__(self, call: Any, delay: float, receive: Callable[[pb.ServerFrame], None]) -> None:
        self._call = call
        self._receive = receive
        self._outgoing: DelayLine[pb.DeviceFrame] = DelayLine(delay)
        self._incoming: DelayLine[pb.ServerFrame] = DelayLine(delay)
        self._aborted: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()

    async def greet(self, hello: pb.DeviceHello, within: float) -> pb.ServerHello:
        """Exchange hellos; raises the server's refusal, or ConnectionLost when there is no answer in time."""
        try:
            async with asyncio.timeout(within):
                with wire_errors():
                    await self._call.write(pb.DeviceFrame(hello=hello))
                    frame = await self._call.read()
        except TimeoutError:
            raise ConnectionLost(f"no answer within {within:g} s") from None
        if frame is _END:
            raise ConnectionLost("the server closed the stream without a hello")
        if frame.WhichOneof("body") == "error":
            raise error_from_wire(frame.error)
        if frame.WhichOneof("body") != "hello":
            raise ProtocolError("the server's first frame is not a hello")
        answer: pb.ServerHello = frame.hello
        return answer

    def send(self, frame: pb.DeviceFrame) -> None:
        """Queue a frame; it leaves in order, or never if the stream ends before."""
        self._outgoing.put(frame)

    def abort(self, error: WispError) -> None:
        """End the stream for a reason of ours."""
        if not self._aborted.done():
            self._aborted.set_exception(error)
            self._aborted.exception()  # `run` may have ended already and would never ask

    async def run(self) -> NoReturn:
        """Carry frames until the stream ends; raises ConnectionLost, AuthenticationFailed or what `abort` was given."""
        tasks: list[asyncio.Future[NoReturn]] = [
            asyncio.ensure_future(work()) for work in (self._write, self._read, self._deliver)
        ]
        try:
            done, _ = await asyncio.wait([*tasks, self._aborted], return_when=asyncio.FIRST_COMPLETED)
            for ended in (self._aborted, *tasks):
                if ended in done:
                    _raise_end(ended)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._call.cancel()
        raise AssertionError("a stream ends with an error")

    async def _write(self) -> NoReturn:
        while True:
            frame = await self._outgoing.get()
            with wire_errors():
                await self._call.write(frame)

    async def _read(self) -> NoReturn:
        while True:
            with wire_errors():
                frame = await self._call.read()
            if frame is _END:
                with wire_errors():
                    code = await self._call.code()
                    details = await self._call.details()
                raise _lost(code, details)
            self._incoming.put(frame)

    async def _deliver(self) -> NoReturn:
        while True:
            self._receive(await self._incoming.get())


@contextlib.contextmanager
def wire_errors() -> Iterator[None]:
    """GRPC's exceptions as those of our tree."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _lost(error.code(), error.details()) from None
    except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
        raise ConnectionLost(f"the stream has ended: {error}") from None


def _raise_end(ended: asyncio.Future[NoReturn]) -> None:
    if ended.cancelled():  # the call, not this task: it must not pass for a shutdown of ours
        raise ConnectionLost("the call was cancelled")
    ended.result()


def _lost(code: grpc.StatusCode, details: str | None) -> WispError:
    if code in _CREDENTIAL_CODES:
        return AuthenticationFailed(details or "the server does not accept this device's credentials")
    if unreached := _UNREACHED.fullmatch(details or ""):
        return ConnectionLost(unreached["reason"])
    return ConnectionLost(f"the stream ended: {details or code.name.lower()}")
