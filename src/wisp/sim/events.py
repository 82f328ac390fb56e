"""The event loop: a heap of things to happen, taken instant by instant."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any


class Events:
    """What happens next; `now` is virtual time in seconds."""

    __slots__ = ("_ending", "_heap", "_order", "now", "num_taken", "running")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._ending: list[Callable[[], None]] = []
        self._order = 0
        self.now = 0.0
        self.num_taken = 0
        self.running = False

    def at(self, time: float, action: Callable[[Any], None], argument: Any = None) -> None:
        """Have `action(argument)` happen at `time`; what was asked for first happens first."""
        heappush(self._heap, (time, self._order, action, argument))
        self._order += 1

    def finally_now(self, action: Callable[[], None]) -> None:
        """Have `action()` happen when all events of this instant were taken."""
        self._ending.append(action)

    def run(self, until: float = inf) -> None:
        """Take events, instant by instant; until none is left, `until` is past, or `stop` was called."""
        heap, ending, num_taken = self._heap, self._ending, self.num_taken
        self.running = True
        while heap and self.running:
            now = heap[0][0]
            if now > until:
                break
            self.now = now
            while True:
                _, _, action, argument = heappop(heap)
                action(argument)
                num_taken += 1
                if not heap or heap[0][0] > now:
                    break
            if ending:
                for settle in ending:
                    settle()
                ending.clear()
        self.num_taken = num_taken

    def stop(self) -> None:
        """Let `run` return after this instant."""
        self.running = False
