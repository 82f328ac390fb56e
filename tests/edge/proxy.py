"""A TCP proxy between device and server whose cables a test can pull."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Proxy:
    """Forwards to `port`; what happens to connections that are open is up to the test."""

    port: int
    num_connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _stalled: bool = False
    _server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every open connection without a word."""
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Swallow whatever open connections send from now on; new ones work."""
        for writer in self._writers:
            writer.wisp_stalled = True  # type: ignore[attr-defined]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        self._writers -= {writer, far_writer}
        for end in (writer, far_writer):
            end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            if not getattr(writer, "wisp_stalled", False):
                writer.write(data)
                await writer.drain()
    except OSError:
        pass
    writer.transport.abort()


@asynccontextmanager
async def proxy_to(port: int) -> AsyncGenerator[Proxy, None]:
    """A proxy that forwards to a port of loopback."""
    proxy = Proxy(port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
