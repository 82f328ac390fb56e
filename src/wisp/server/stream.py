"""The outgoing side of one device's stream: a queue that cannot grow without bound."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from wisp.protocol.padding import padded

HIGH_WATER_FRAMES = 256
"""With more than this many frames unread the device is served no further."""
LOW_WATER_FRAMES = 64


@dataclass(slots=True, eq=False)
class DeviceStream:
    """One connected device: who it is, and the frames that wait to be written to it.

    A congested stream is not read from and its sessions decode no further, so that what waits stays below the high
    water mark plus one frame for each of its sessions.
    """

    owner: str
    """Name of its credential."""
    padding: bool = False
    """Whether frames are filled up to a few sizes."""
    greeted: bool = field(default=False, init=False)
    """Whether the hellos were exchanged."""
    over: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Set when nothing that the device sends counts any more."""
    congested: bool = field(default=False, init=False)
    sessions: set[int] = field(default_factory=set, init=False)
    """Sessions that it holds."""
    on_relief: list[Callable[[], None]] = field(default_factory=list, init=False)
    """Called once each when the stream is no longer congested."""
    writing_since: float | None = field(default=None, init=False)
    """When the write that is under way began."""
    _frames: deque[bytes] = field(default_factory=deque, init=False)
    _filled: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _relieved: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._relieved.set()
        self._idle.set()

    def send(self, frame: bytes) -> None:
        """Queue a frame."""
        self._frames.append(padded(frame) if self.padding else frame)
        self._filled.set()
        self._idle.clear()
        if len(self._frames) > HIGH_WATER_FRAMES:
            self.congested = True
            self._relieved.clear()

    def end(self, last_words: bytes) -> None:
        """Queue the frame that says why the stream ends, and end it."""
        if not self.over.is_set():
            self.send(last_words)
            self.over.set()

    async def next_frame(self) -> bytes:
        """The next frame to write; the one before counts as written."""
        if not self._frames:
            self._idle.set()
            self._filled.clear()
            await self._filled.wait()
        frame = self._frames.popleft()
        if self.congested and len(self._frames) <= LOW_WATER_FRAMES:
            self._relieve()
        return frame

    def writing_for(self, now: float) -> float:
        """Seconds that the write under way has taken so far."""
        return 0.0 if self.writing_since is None else now - self.writing_since

    def discard(self) -> None:
        """Drop what waits: the device has been given up."""
        self._frames.clear()

    async def relieved(self) -> None:
        """Wait while the stream is congested."""
        await self._relieved.wait()

    async def flushed(self) -> None:
        """Wait until everything queued has been written."""
        await self._idle.wait()

    @property
    def num_waiting(self) -> int:
        return len(self._frames)

    def _relieve(self) -> None:
        self.congested = False
        self._relieved.set()
        waiting, self.on_relief = self.on_relief, []
        for resume in waiting:
            resume()
