"""Who asks for what: devices and their sessions, drawn from a seed; the same under every system and in every fleet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from wisp.errors import ConfigError
from wisp.formats.trace import TraceRecord
from wisp.sim.workload import Spread, TracedSession


@dataclass(frozen=True, slots=True)
class FleetModel:
    """What devices and their users are like; each device draws its own values once."""

    draft_speed: Spread
    """Drafted tokens per second."""
    rtt: Spread
    """Seconds."""
    prompt_speed: float = 1000.0
    """Tokens per second that a drafter reads."""
    think_time: float = 1.0
    """Mean pause between two sessions of a device, exponential; seconds."""

    def __post_init__(self) -> None:
        if self.draft_speed.low <= 0.0 or self.prompt_speed <= 0.0:
            raise ConfigError("drafting and reading speeds must be positive")
        if self.think_time < 0.0:
            raise ConfigError(f"the pause between sessions must not be negative, not {self.think_time}")


@dataclass(frozen=True, slots=True)
class Ask:
    """One session that a device opens."""

    record: TraceRecord
    """The prompt, and what the target says to it."""
    max_tokens: int
    slo: str
    pause: float
    """Seconds to the next session."""


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """What a device is made to look like; seconds."""

    draft_time: float
    """Per drafted token."""
    read_time: float
    """Per token that its drafter only reads."""
    rtt: float


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked for."""

    records: Sequence[TraceRecord]
    slos: Sequence[str]
    """Classes, in equal shares."""
    lengths: Sequence[TracedSession] = ()
    """Of a public trace: each session takes the recorded prompt of the nearest length, and as long an output as both
    have. Empty: recorded prompts in random order, whole outputs."""
    questions: int = 1
    """Prompts in a row that share a context: a device asks all of them before it turns to the next context."""

    def __post_init__(self) -> None:
        if not self.records:
            raise ConfigError("the trace holds no prompts to ask for")


def conversations(records: Sequence[TraceRecord], questions: int) -> list[list[TraceRecord]]:
    """The records of each context, by the numbers of their prompts."""
    return [list(group) for _, group in groupby(records, lambda record: record.prompt // questions)]


class DeviceScript:
    """One device: its traits, and its sessions one after the other, without end."""

    def __init__(self, fleet: FleetModel, workload: Workload, seed: int, index: int) -> None:
        self._rng = np.random.default_rng([seed, index])
        self._fleet, self._workload = fleet, workload
        self.traits = DeviceTraits(
            1.0 / fleet.draft_speed.draw(self._rng), 1.0 / fleet.prompt_speed, fleet.rtt.draw(self._rng)
        )

    def asks(self) -> Iterator[Ask]:
        """No prompt comes a second time before each has come once.

        Where prompts share contexts, the first conversation is a part of one: devices are at different points of theirs.
        """
        num_asked = int(self._rng.integers(self._workload.questions))
        return map(self._ask, islice(self._records(), num_asked, None))

    def _records(self) -> Iterator[TraceRecord]:
        contexts = conversations(self._workload.records, self._workload.questions)
        while True:
            for number in self._rng.permutation(len(contexts)).tolist():
                for index in self._rng.permutation(len(contexts[number])).tolist():
                    yield contexts[number][index]

    def _ask(self, record: TraceRecord) -> Ask:
        workload = self._workload
        num_wanted = len(record.chains)
        if workload.lengths:
            row = workload.lengths[int(self._rng.integers(len(workload.lengths)))]
            record = min(workload.records, key=lambda one: abs(one.num_prompt_tokens - row.num_prompt_tokens))
            num_wanted = row.num_output_tokens
        slo = workload.slos[int(self._rng.integers(len(workload.slos)))]
        pause = float(self._rng.exponential(self._fleet.think_time)) if self._fleet.think_time else 0.0
        return Ask(record, min(num_wanted, len(record.chains)), slo, pause)
