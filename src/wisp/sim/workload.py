"""Who asks for what and when: closed fleets, open arrivals, lengths, SLO mixes, and recorded traces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from wisp.errors import ConfigError
from wisp.sim.acceptance import Acceptance, AcceptanceModel
from wisp.sim.script import SessionScript
from wisp.types import SLO


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal token counts; `variation` is the standard deviation over the mean (0: all alike)."""

    mean: float
    variation: float = 0.0
    longest: int = 1 << 15

    def __post_init__(self) -> None:
        if not 1.0 <= self.mean <= self.longest:
            raise ConfigError(f"lengths must be at least 1 and at most {self.longest} tokens, not {self.mean}")
        if self.variation < 0.0:
            raise ConfigError(f"the variation of lengths must not be negative, not {self.variation}")

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        if not self.variation:
            return round(self.mean)
        sigma = math.sqrt(math.log1p(self.variation * self.variation))
        length = rng.lognormal(math.log(self.mean) - sigma * sigma / 2.0, sigma)
        return min(max(round(length), 1), self.longest)


@dataclass(frozen=True, slots=True)
class TracedSession:
    """One session of a trace."""

    arrival: float
    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Open arrivals, at a rate that does not heed how the server does: gamma gaps, Poisson at variation 1."""

    rate: float
    """Sessions per second."""
    variation: float = 1.0
    """Standard deviation of the gaps over their mean; above 1: bursts."""

    def __post_init__(self) -> None:
        if self.rate <= 0.0 or self.variation <= 0.0:
            raise ConfigError(f"rate and variation must be positive, not {self.rate} and {self.variation}")

    def draw(self, rng: np.random.Generator) -> Iterator[float]:
        """Times of arrival, without end."""
        shape = self.variation**-2.0
        time = 0.0
        while True:
            for gap in rng.gamma(shape, 1.0 / (self.rate * shape), 256).tolist():
                time += gap
                yield time


@dataclass(frozen=True, slots=True)
class Workload:
    """What sessions are like."""

    prompt: Lengths = Lengths(256.0, 0.8, 4096)
    output: Lengths = Lengths(128.0, 0.8, 1024)
    slos: tuple[SLO, ...] = (SLO("4/s", 4.0, 5.0),)
    """Classes, in equal shares."""
    think_time: float = 5.0
    """Mean pause of a closed-loop device between two sessions, exponential."""
    arrivals: Arrivals | None = None
    """None: a closed fleet, each device asking again after its pause."""
    trace: tuple[TracedSession, ...] = ()
    """Replayed instead of drawn lengths and arrivals."""
    lengths: tuple[TracedSession, ...] = ()
    """Sessions whose lengths are drawn, each as often as the others, instead of log-normal ones."""
    acceptance: Acceptance = field(default_factory=AcceptanceModel)

    def script(self, rng: np.random.Generator, traced: TracedSession | None = None) -> SessionScript:
        """Draw one session."""
        slo = self.slos[int(rng.integers(len(self.slos)))] if self.slos else None
        if self.lengths and traced is None:
            traced = self.lengths[int(rng.integers(len(self.lengths)))]
        num_prompt = self.prompt.draw(rng) if traced is None else traced.num_prompt_tokens
        num_output = self.output.draw(rng) if traced is None else traced.num_output_tokens
        return SessionScript(num_prompt, num_output, slo, self.acceptance.fate(num_output, rng))

    def pause(self, rng: np.random.Generator) -> float:
        """Seconds until a closed-loop device asks again."""
        return float(rng.exponential(self.think_time)) if self.think_time else 0.0

    @property
    def longest_output(self) -> int:
        """Output tokens that a client allows."""
        recorded = (traced.num_output_tokens for traced in (*self.trace, *self.lengths))
        return max(recorded, default=self.output.longest)


@dataclass(frozen=True, slots=True)
class Spread:
    """A value that differs between devices: log-uniform from `low` to `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high or (self.low == 0.0 < self.high):
            raise ConfigError(f"a range must have 0 < low <= high (or 0 at both ends), not {self.low}-{self.high}")

    def draw(self, rng: np.random.Generator) -> float:
        """One device's value."""
        if self.low == self.high:
            return self.low
        return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
