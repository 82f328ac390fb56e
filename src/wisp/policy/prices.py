"""What one more verified position, one more round, and a token of plain decoding cost the fleet.

    pressure       = max(0, (u - u_free) / (1 - u_free)),   u the engine's utilisation: zero on an idle server
    t_n, t_r       seconds of one more position (dT/dn) and of one more round before its first one (d * cached + e), at
                   the recent mean batch; where batches hold fewer rounds than would fill them, a round also takes its
                   part of what every batch costs
    level          share of the mean batch's time that its rounds cause so: an engine that is busy with small batches
                   has time to spare, since others could join them
    per position   = pressure * level * t_n / (t_n + t_r)
    per round      = pressure * level * t_r / (t_n + t_r)
    plain token    = pressure * level * (t_r + n t_n + D) / (t_n + t_r) / g,   of a round of plain decoding with n positions
                     and g tokens, and D seconds of a drafter beside the target: n = g = 1 and D = 0 where there is none

All are in tokens. A token of plain decoding takes t_n + t_r, and an engine of that level commits level / (t_n + t_r) of
them per second: the prices are what it could have committed for others in the time. A drafted token is worth verifying if
its survival, the tokens expected of it, exceeds the price of a position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.typical_round import TypicalRound
from wisp.types import Prices


@dataclass(frozen=True, slots=True)
class MeterSettings:
    """What "recent" and "idle" mean."""

    memory: float = 10.0
    """Seconds after which a batch counts for 1/e in the typical round."""
    busy_memory: float = 2.0
    """The same in the utilisation: a server that was idle a moment ago and is not any more has to say so soon."""
    free_utilisation: float = 0.5
    """Below this engine time costs nobody anything."""


@dataclass(frozen=True, slots=True)
class PlainRound:
    """What a round of plain decoding takes and gives, what the server drafts for it included."""

    num_positions: float = 1.0
    num_committed: float = 1.0
    drafter_s: float = 0.0
    """Seconds of the drafter beside the target, its share of those for all."""


UNASSISTED = PlainRound()
"""Where the server drafts nothing."""


class FleetMeter:
    """Counts what the engine did lately; `now` is the clock of the batches."""

    def __init__(self, settings: MeterSettings | None = None) -> None:
        self._settings = settings or MeterSettings()
        self._now = 0.0
        self._busy = self._committed = self._rounds = self._prefilled = self._between = 0.0
        self._lately_busy = 0.0
        self._work = np.zeros(5)
        """Batches, and the sums of their shapes: new, attended, cached, requests."""

    def observe(
        self,
        shape: BatchShape,
        ended: float,
        elapsed: float,
        num_rounds: int,
        num_committed: int,
        num_prefilled: int = 0,
    ) -> None:
        """A batch ran; `num_rounds` of its members were verified, `num_prefilled` of its positions were of prompts."""
        keep, before = self._fading(ended), self._now
        self._now = max(ended, self._now)
        self._busy = keep * self._busy + elapsed
        memory = self._settings.busy_memory
        self._lately_busy *= math.exp(min(0.0, before - ended) / memory)
        self._lately_busy += 1.0 - math.exp(-elapsed / memory)
        self._between *= keep
        self._committed = keep * self._committed + num_committed
        self._rounds = keep * self._rounds + num_rounds
        self._prefilled = keep * self._prefilled + num_prefilled
        self._work = keep * self._work + (1, shape.num_new, shape.num_attended, shape.num_cached, shape.num_requests)

    def observe_between(self, elapsed: float) -> None:
        """A batch began so long after the one before, although there was something to do all the time."""
        self._between += elapsed

    @property
    def share_between(self) -> float:
        """What the server lately took between batches, as a share of the batches' time."""
        return self._between / self._busy if self._busy else 0.0

    def utilisation(self, now: float) -> float:
        """Share of the recent time that the engine was busy; the time before the first batch counts as idle."""
        return min(1.0, self._lately_busy * math.exp(min(0.0, self._now - now) / self._settings.busy_memory))

    def work(self, model: BatchTimeModel, now: float) -> float:
        """Share of the recent time that its rounds would take in large batches."""
        _, *sums = self._work.tolist()
        position = model.per_token_s + model.per_token_above_ridge_s
        times = (position, model.per_attended_s, model.per_cached_s, model.per_request_s)
        return float(np.dot(sums, times)) * self._fading(now) / self._settings.memory

    @property
    def typical(self) -> TypicalRound:
        """The recent mean round."""
        if self._rounds < 1.0:
            return TypicalRound()
        _, new, _, cached, requests = self._work.tolist()
        committed = max(1.0, self._committed / self._rounds)
        return TypicalRound(max(1.0, new / self._rounds), cached / requests, committed, self._prefilled / self._rounds)

    def lasting(self, prefill_per_token: float | None) -> TypicalRound:
        """The recent mean round, if prompts take so many positions per committed token, whatever they took lately.

        None: as lately. Where many have just begun, prompts take most of the time for a while.
        """
        typical = self.typical
        if prefill_per_token is None or self._rounds < 1.0:
            return typical
        own, prefill = typical.num_new - typical.num_prefill, prefill_per_token * typical.num_committed
        return replace(typical, num_new=max(1.0, own) + prefill, num_prefill=prefill)

    def prices(
        self,
        model: BatchTimeModel,
        now: float,
        num_filled: float,
        max_requests: int,
        plain: PlainRound = UNASSISTED,
    ) -> Prices:
        """Of a position, a round, and a token of plain decoding.

        At most `max_requests` of `num_filled` rounds find room in a batch.
        """
        free = self._settings.free_utilisation
        pressure = max(0.0, (self.utilisation(now) - free) / (1.0 - free))
        if pressure == 0.0 or self._rounds < 1.0:
            return Prices(plain_tokens=plain.num_committed)
        batches, new, attended, cached, requests = self._work.tolist()
        mean = BatchShape(round(new / batches), attended / batches, round(cached / batches), round(requests / batches))
        position, extra = model.marginal_position_time(mean), model.round_time(cached / requests)
        elapsed = model.predict(mean)
        own = elapsed - position * mean.num_new - extra * mean.num_requests
        extra += max(0.0, own) * max(0.0, 1.0 / max_requests - 1.0 / max(num_filled, 1.0))
        level = min(1.0, (position * mean.num_new + extra * mean.num_requests) / max(elapsed, 1e-12))
        unit = pressure * level / max(position + extra, 1e-12)
        decoded = (extra + plain.num_positions * position + plain.drafter_s) / plain.num_committed
        return Prices(unit * position, unit * extra, unit * decoded, plain.num_committed)

    def _fading(self, now: float) -> float:
        return math.exp(min(0.0, self._now - now) / self._settings.memory)
