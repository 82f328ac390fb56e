"""An event loop whose clock jumps to the next timer instead of sleeping, and an engine that lives on it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """Finds nothing to wait for, so it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: VirtualTimeLoop | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0 and self.loop is not None:
            self.loop.jump()
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at time 0; a wait that nothing can end is an error instead of a hang."""

    def __init__(self) -> None:
        self._now = 0.0
        selector = _Jumping()
        super().__init__(selector)
        selector.loop = self
        self._clock_resolution = 1e-12

    def time(self) -> float:
        return self._now

    def jump(self) -> None:
        """To the next timer, exactly: no rounding can put it a hair before or after."""
        if not self._scheduled:
            raise RuntimeError("everybody waits and no timer is set")
        self._now = max(self._now, self._scheduled[0]._when)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


class VirtualEngineTime:
    """Runs engine calls at once, then lets the time pass that they say they took (see VerificationLoop.run)."""

    def __init__(self) -> None:
        self._spent = 0.0

    def sleep(self, seconds: float) -> None:
        """What an emulated engine sleeps with."""
        self._spent += seconds

    async def __call__(self, call: Callable[[], T], /) -> T:
        self._spent = 0.0
        result = call()
        await asyncio.sleep(self._spent)
        return result
