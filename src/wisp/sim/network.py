"""The network between a device and the server: delay, jitter, loss; messages of one direction never overtake."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wisp.errors import ConfigError

BLOCK = 32
"""Messages whose delays are drawn at a time."""


@dataclass(frozen=True, slots=True)
class LinkModel:
    """One direction; seconds. A lost message is sent again after a timeout, as TCP does, and holds up later ones."""

    delay: float = 0.0
    jitter: float = 0.0
    """Mean of an exponential delay on top."""
    loss: float = 0.0
    """Probability that one transmission is lost."""
    retransmission_time: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.loss < 1.0:
            raise ConfigError(f"loss must be in 0..1 (1 excluded), not {self.loss}")
        if min(self.delay, self.jitter) < 0.0:
            raise ConfigError(f"delay and jitter must not be negative, not {self.delay} and {self.jitter}")

    def draw(self, rng: np.random.Generator, num_messages: int) -> list[float]:
        """Delays of so many messages."""
        delays = np.full(num_messages, self.delay)
        if self.jitter:
            delays += rng.exponential(self.jitter, num_messages)
        if self.loss:
            delays += self.retransmission_time * (rng.geometric(1.0 - self.loss, num_messages) - 1)
        return delays.tolist()


@dataclass(frozen=True, slots=True)
class Churn:
    """Devices that vanish in the middle of a session, and come back, or not; seconds."""

    rate: float = 0.0
    """Disconnections per second of a session; 0: none."""
    away: float = 10.0
    """Mean time away, exponential."""
    abandoned: float = 0.0
    """Share of disconnections after which the session is given up."""

    def __post_init__(self) -> None:
        if self.rate < 0.0 or self.away < 0.0 or not 0.0 <= self.abandoned <= 1.0:
            raise ConfigError(
                "disconnections need a rate and a time away that are not negative, and a share abandoned in 0..1, "
                f"not {self.rate}, {self.away} and {self.abandoned}"
            )


@dataclass(slots=True)
class Link:
    """One direction of one device's stream."""

    model: LinkModel
    rng: np.random.Generator
    _delays: list[float] = field(default_factory=list, init=False)
    """Drawn ahead: one at a time they cost more than everything else that a message causes."""
    _last: float = field(default=0.0, init=False)

    def arrival(self, sent: float) -> float:
        """When a message that is sent now gets there."""
        if not self._delays:
            self._delays = self.model.draw(self.rng, BLOCK)[::-1]
        arrival = sent + self._delays.pop()
        if arrival < self._last:
            return self._last
        self._last = arrival
        return arrival

    def reconnect(self) -> None:
        """Messages of a new connection do not wait for those of the old one."""
        self._last = 0.0
