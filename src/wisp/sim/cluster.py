"""Several verifiers behind one address: where sessions are placed, and which verifiers are lost when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wisp.errors import ConfigError
from wisp.policy.placement import Placement
from wisp.sim.verifier import Verifier


@dataclass(frozen=True, slots=True)
class VerifierLoss:
    """A verifier that dies, with everything in its memory; seconds."""

    verifier: int
    at: float
    until: float = float("inf")
    """When it is back, empty."""

    def __post_init__(self) -> None:
        if self.verifier < 0 or not 0.0 <= self.at < self.until:
            raise ConfigError(
                f"a verifier (0, 1, ...) is lost at a time and is back later, not {self.verifier} at {self.at}, "
                f"back at {self.until}"
            )


@dataclass(slots=True, eq=False)
class Cluster:
    """The verifiers; whoever opens a session is placed at the moment his message arrives."""

    verifiers: Sequence[Verifier]
    placement: Placement
    retry_after: float
    """Told to those who come while no verifier is up, seconds."""

    def place(self, key: str) -> Verifier | None:
        """The verifier that a session of this device is opened on; None: all are down."""
        index = self.placement(key, [len(one.sessions) if one.is_up else None for one in self.verifiers])
        return None if index is None else self.verifiers[index]

    def schedule(self, losses: Sequence[VerifierLoss], at: Callable[[float, Callable[[object], None]], None]) -> None:
        """Have the losses happen, through `at(time, action)`."""
        for loss in losses:
            if loss.verifier >= len(self.verifiers):
                raise ConfigError(f"there is no verifier {loss.verifier} to lose: there are {len(self.verifiers)}")
            verifier = self.verifiers[loss.verifier]
            at(loss.at, verifier.fail)
            if loss.until < float("inf"):
                at(loss.until, verifier.restart)
