"""A bounded sweep of ragged batches: short and long contexts, drafts and prompt chunks, few and many requests.

Every shape is measured once per pass, pass after pass, so that a busy spell of the machine hits all shapes alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wisp.calibration.fit import MIN_SHAPES
from wisp.calibration.sessions import SweepSession, SweepSessions
from wisp.engines.base import StepMember, TargetEngine
from wisp.formats.calibration import BatchSample, Members
from wisp.types import DraftedToken

Clock = Callable[[], float]
_ENOUGH = 2 * MIN_SHAPES
"""Shapes that are worth more than repeats."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """How much to measure."""

    time_budget: float = 60.0
    """Seconds for all of it; what does not fit is left out."""
    num_shapes: int = 140
    repeats: int = 5
    max_requests: int = 32
    max_new_tokens: int = 9
    """Of one verification: the last committed token and a draft."""
    max_cached_tokens: int = 2048
    max_chunk_tokens: int = 512
    chunk_share: float = 0.3
    """Of the shapes hold a chunk of a prompt too."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Clocks:
    """How time is read, in seconds."""

    wall: Clock = time.perf_counter
    cpu: Clock | None = None
    """The processor time of this thread, where it is this thread that computes: others hardly disturb it."""

    @classmethod
    def of(cls, engine: TargetEngine) -> Clocks:
        """Engines on a CPU compute on the thread that calls them."""
        card = engine.card
        return cls(cpu=time.thread_time if card.device == "cpu" and not card.emulated else None)


@dataclass(frozen=True, slots=True)
class _Member:
    session: SweepSession
    num_prefill: int
    draft: tuple[DraftedToken, ...] | None

    @property
    def num_new(self) -> int:
        return self.num_prefill + (0 if self.draft is None else 1 + len(self.draft))


@dataclass(slots=True)
class _Shape:
    """A batch, and what was measured of it so far."""

    members: list[_Member]
    times: list[float]
    cpu_times: list[float]

    def sample(self, repeats: int) -> BatchSample:
        members: Members = tuple((member.num_new, member.session.num_cached) for member in self.members)
        return BatchSample(members, tuple(self.times[:repeats]), tuple(self.cpu_times[:repeats]))


class Sweep:
    """Opens sessions of its own on an idle engine, measures batches of them, and leaves nothing behind.

    `progress` is told the share that is done.
    """

    def __init__(
        self, engine: TargetEngine, settings: SweepSettings, clocks: Clocks, progress: Callable[[float], None]
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._clocks = clocks
        self._progress = progress
        self._rng = np.random.default_rng(settings.seed)
        self._end = clocks.wall() + settings.time_budget

    def run(self) -> list[BatchSample]:
        """Every shape with its times; a step that was begun in time is the last. Raises FormatError."""
        settings = self._settings
        until = self._end - 0.75 * settings.time_budget
        with SweepSessions(
            self._engine,
            self._rng,
            max_cached=settings.max_cached_tokens,
            max_chunk=settings.max_chunk_tokens,
            max_new=settings.max_new_tokens,
        ) as sessions:
            sessions.fill(settings.max_requests, self._clocks.wall, until)
            self._measure(self._shape(sessions, 0.0), sessions)  # warms up; its time is not kept
            return self._passes(sessions)

    # Shapes

    def _shares(self) -> Sequence[float]:
        """How large each shape is among all, from one request to all sessions; in an order that means nothing."""
        return list(self._rng.permutation(self._settings.num_shapes) / max(self._settings.num_shapes - 1, 1))

    def _shape(self, sessions: SweepSessions, share: float) -> _Shape:
        """A ragged batch; `share` 0 is one request, 1 all of them, on a logarithmic scale."""
        size = max(1, round(len(sessions.all) ** share))
        chosen = self._rng.choice(len(sessions.all), size, replace=False)
        most = self._rng.integers(1, self._settings.max_new_tokens + 1)
        members = [self._verification(sessions.all[index], int(self._rng.integers(1, most + 1))) for index in chosen]
        if self._rng.random() < self._settings.chunk_share:
            limit = sessions.max_chunk
            chunk = round(math.exp(self._rng.uniform(math.log(min(8, limit)), math.log(limit))))
            members[0] = _Member(members[0].session, chunk, None)
        return _Shape(members, [], [])

    def _verification(self, session: SweepSession, num_new: int) -> _Member:
        tokens = self._rng.integers(0, self._engine.card.vocabulary_size, num_new - 1).tolist()
        return _Member(session, 0, tuple(DraftedToken(token) for token in tokens))

    # Measuring

    def _passes(self, sessions: SweepSessions) -> list[BatchSample]:
        """The first pass decides how many shapes fit into the time; one that is not finished in time is dropped."""
        wall, repeats = self._clocks.wall, self._settings.repeats
        begin = wall()
        first_until = begin + (self._end - begin) / repeats
        measured: list[_Shape] = []
        for share in self._shares():
            if wall() > (first_until if len(measured) >= _ENOUGH else self._end) and measured:
                break
            measured.append(self._shape(sessions, share))
            self._measure(measured[-1], sessions)
        done = 1
        while done < repeats and self._pass(measured, sessions):
            done += 1
            self._progress(done / repeats)
        self._progress(1.0)
        return [shape.sample(done) for shape in measured]

    def _pass(self, shapes: Sequence[_Shape], sessions: SweepSessions) -> bool:
        """Measure each shape once more; False: the time was up before the last."""
        for shape in shapes:
            if self._clocks.wall() > self._end:
                return False
            self._measure(shape, sessions)
        return True

    def _measure(self, shape: _Shape, sessions: SweepSessions) -> None:
        for member in shape.members:
            sessions.prepare(member.session, member.num_prefill)
        steps = [StepMember(member.session.id, member.num_prefill, member.draft) for member in shape.members]
        wall, cpu = self._clocks.wall, self._clocks.cpu
        started, cpu_started = wall(), 0.0 if cpu is None else cpu()
        self._engine.step(steps)
        if cpu is not None:
            shape.cpu_times.append(cpu() - cpu_started)
        shape.times.append(wall() - started)
        for member in shape.members:
            if member.num_prefill > member.session.num_cached:  # more than an engine gives up for a cached prefix
                self._engine.evict(member.session.id)
