"""What one more verified position, and one more round, cost the fleet.

    lambda         = committed tokens per second of engine time * pressure       (recent, decaying)
    pressure       = max(0, (u - u_free) / (1 - u_free)),   u the engine's utilisation: zero on an idle server
    per position   = lambda * dT/dn          at the recent mean batch
    per round      = lambda * (d * cached + e)

Both are in tokens: what the engine could have committed for others in the time. A drafted token is worth verifying if
its survival, the tokens expected of it, exceeds the price of a position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.types import Prices


@dataclass(frozen=True, slots=True)
class MeterSettings:
    """What "recent" and "idle" mean."""

    memory: float = 10.0
    """Seconds after which a batch counts for 1/e."""
    free_utilisation: float = 0.5
    """Below this engine time costs nobody anything."""


@dataclass(frozen=True, slots=True)
class TypicalRound:
    """The recent mean round; the default is assumed before there was one."""

    num_new: float = 4.0
    num_cached: float = 256.0
    num_committed: float = 2.0

    def batch(self, num_tokens: float) -> BatchShape:
        """The shape of a batch of such rounds with about `num_tokens` positions."""
        size = max(1, round(num_tokens / self.num_new))
        new, cached = max(1, round(self.num_new)), round(self.num_cached)
        return BatchShape(size * new, size * new * (cached + new / 2), size * cached, size)


class FleetMeter:
    """Counts what the engine did lately; `now` is the clock of the batches."""

    def __init__(self, settings: MeterSettings | None = None) -> None:
        self._settings = settings or MeterSettings()
        self._now = 0.0
        self._busy = self._committed = self._rounds = 0.0
        self._work = np.zeros(5)
        """Batches, and the sums of their shapes: new, attended, cached, requests."""

    def observe(self, shape: BatchShape, ended: float, elapsed: float, num_rounds: int, num_committed: int) -> None:
        """A batch ran; `num_rounds` of its members were verified."""
        keep = self._fading(ended)
        self._now = max(ended, self._now)
        self._busy = keep * self._busy + elapsed
        self._committed = keep * self._committed + num_committed
        self._rounds = keep * self._rounds + num_rounds
        self._work = keep * self._work + (1, shape.num_new, shape.num_attended, shape.num_cached, shape.num_requests)

    def utilisation(self, now: float) -> float:
        """Share of the recent time that the engine was busy; the time before the first batch counts as idle."""
        return min(1.0, self._busy * self._fading(now) / self._settings.memory)

    @property
    def typical(self) -> TypicalRound:
        """The recent mean round."""
        if self._rounds < 1.0:
            return TypicalRound()
        _, new, _, cached, requests = self._work.tolist()
        committed = max(1.0, self._committed / self._rounds)
        return TypicalRound(max(1.0, new / self._rounds), cached / requests, committed)

    def prices(self, model: BatchTimeModel, now: float) -> Prices:
        """Of a position and of a round."""
        free = self._settings.free_utilisation
        pressure = max(0.0, (self.utilisation(now) - free) / (1.0 - free))
        if pressure == 0.0:
            return Prices()
        rate = pressure * self._committed / self._busy
        batches, new, attended, cached, requests = self._work.tolist()
        mean = BatchShape(
            round(new / batches), attended / batches, round(cached / batches), max(1, round(requests / batches))
        )
        return Prices(rate * model.position_time(mean), rate * model.round_time(cached / requests))

    def _fading(self, now: float) -> float:
        return math.exp(min(0.0, self._now - now) / self._settings.memory)
