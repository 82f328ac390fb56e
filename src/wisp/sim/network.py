"""The network between a device and the server: delay, jitter, loss; messages of one direction never overtake."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wisp.errors import ConfigError


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


@dataclass(slots=True)
class Link:
    """One direction of one device's stream."""

    model: LinkModel
    rng: np.random.Generator
    _last: float = field(default=0.0, init=False)

    def arrival(self, sent: float) -> float:
        """When a message that is sent now gets there."""
        model = self.model
        delay = model.delay
        if model.jitter:
            delay += self.rng.exponential(model.jitter)
        if model.loss:
            delay += model.retransmission_time * (self.rng.geometric(1.0 - model.loss) - 1)
        self._last = max(self._last, sent + delay)
        return self._last
