"""A bounded sweep of ragged batches: short and long contexts, drafts and prompt chunks, few and many requests.

Every shape is measured once per pass, pass after pass, so that a busy spell of the machine hits all shapes alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wisp.engines.base import StepMember, TargetEngine
from wisp.formats.calibration import BatchSample
from wisp.types import DraftedToken, GenerationRequest, SamplingParams, StopRules, TokenId

OWNER = "wisp-calibration"


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
class _Session:
    id: str
    tokens: tuple[TokenId, ...]
    num_cached: int


@dataclass(frozen=True, slots=True)
class _Member:
    session: _Session
    num_prefill: int
    draft: tuple[DraftedToken, ...] | None


class Sweep:
    """Opens sessions of its own on an idle engine, measures batches of them, and leaves nothing behind.

    `clock` reads seconds; `progress` is told the share that is done.
    """

    def __init__(
        self,
        engine: TargetEngine,
        settings: SweepSettings,
        clock: Callable[[], float],
        progress: Callable[[float], None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._progress = progress
        self._rng = np.random.default_rng(settings.seed)
        self._started = clock()

    def run(self) -> list[BatchSample]:
        """Every shape with its times."""
        sessions: list[_Session] = []
        try:
            for session in self._sessions():
                sessions.append(session)  # noqa: PERF402 - those that were opened have to be closed, whatever happens
            self._measure([self._shape(sessions, 0.0)])
            return self._passes([self._shape(sessions, share) for share in self._shares()])
        finally:
            for session in sessions:
                self._engine.evict(session.id)
                self._engine.close(session.id)

    @property
    def _spent(self) -> float:
        return self._clock() - self._started

    def _shares(self) -> Sequence[float]:
        """How large each shape is among all, from one request to all sessions; in an order that means nothing."""
        return list(self._rng.permutation(self._settings.num_shapes) / max(self._settings.num_shapes - 1, 1))

    # Sessions

    def _sessions(self) -> Iterator[_Session]:
        """Open sessions of many lengths with filled caches, for a quarter of the time at most."""
        room = self._engine.kv_capacity_tokens // 2
        for index, num_cached in enumerate(self._lengths()):
            needed = num_cached + self._settings.max_chunk_tokens + self._engine.kv_page_tokens
            if index and (self._spent > self._settings.time_budget / 4 or needed > room):
                return
            room -= needed
            size = num_cached + 1 + self._settings.max_chunk_tokens
            tokens = self._rng.integers(0, self._engine.card.vocabulary_size, size).tolist()
            session = _Session(f"calibration-{index}", tuple(tokens), num_cached)
            self._open(session, 0)
            yield session
            self._prefill(session, 0)

    def _lengths(self) -> list[int]:
        """Spread evenly on a logarithmic scale, shuffled."""
        settings = self._settings
        reserve = settings.max_chunk_tokens + settings.max_new_tokens + 2
        longest = max(1, min(settings.max_cached_tokens, self._engine.card.context_length - reserve))
        lengths = np.geomspace(min(16, longest), longest, settings.max_requests)
        return [round(length) for length in self._rng.permutation(lengths)]

    def _open(self, session: _Session, num_prefill: int) -> int:
        """Open (again) with as much of the history as is cached or to be prefilled; returns what is cached."""
        tokens = session.tokens[: session.num_cached + num_prefill + 1]
        stop = StopRules(self._engine.card.context_length - len(tokens))
        request = GenerationRequest(tokens, len(tokens), SamplingParams(), stop)
        return self._engine.open(session.id, OWNER, request)

    def _prefill(self, session: _Session, num_cached: int) -> None:
        while num_cached < session.num_cached:
            chunk = min(self._settings.max_chunk_tokens, session.num_cached - num_cached)
            self._engine.step([StepMember(session.id, chunk)])
            num_cached += chunk

    # Shapes

    def _shape(self, sessions: Sequence[_Session], share: float) -> list[_Member]:
        """A ragged batch; `share` 0 is one request, 1 all of them, on a logarithmic scale."""
        size = max(1, round(len(sessions) ** share))
        chosen = self._rng.choice(len(sessions), size, replace=False)
        most = self._rng.integers(1, self._settings.max_new_tokens + 1)
        members = [self._verification(sessions[index], int(self._rng.integers(1, most + 1))) for index in chosen]
        if self._rng.random() < self._settings.chunk_share:
            limit = self._settings.max_chunk_tokens
            chunk = round(math.exp(self._rng.uniform(math.log(min(8, limit)), math.log(limit))))
            members[0] = _Member(members[0].session, chunk, None)
        return members

    def _verification(self, session: _Session, num_new: int) -> _Member:
        tokens = self._rng.integers(0, self._engine.card.vocabulary_size, num_new - 1).tolist()
        return _Member(session, 0, tuple(DraftedToken(token) for token in tokens))

    # Measuring

    def _passes(self, shapes: list[list[_Member]]) -> list[BatchSample]:
        """The first pass decides how many shapes fit into the time; a pass that comes too late is dropped."""
        budget = self._settings.time_budget
        first_until = self._spent + (budget - self._spent) / self._settings.repeats
        measured = [self._measure(shapes[:1])]
        while len(measured) < len(shapes) and self._spent < first_until:
            measured.append(self._measure(shapes[len(measured) : len(measured) + 1]))
        passes = [[one for (one,) in measured]]
        for number in range(1, self._settings.repeats):
            self._progress(number / self._settings.repeats)
            latest = self._measure(shapes[: len(measured)], until=self._started + budget)
            if len(latest) < len(measured):
                break
            passes.append(latest)
        self._progress(1.0)
        return [BatchSample(same[0][0], tuple(time for _, time in same)) for same in zip(*passes, strict=True)]

    def _measure(
        self, shapes: Sequence[list[_Member]], until: float = math.inf
    ) -> list[tuple[tuple[tuple[int, int], ...], float]]:
        """(new, cached) tokens of each member, and seconds, of each shape in turn."""
        measured = []
        for shape in shapes:
            if self._clock() > until:
                break
            steps, sizes = zip(*[self._prepare(member) for member in shape], strict=True)
            started = self._clock()
            self._engine.step(steps)
            measured.append((sizes, self._clock() - started))
        return measured

    def _prepare(self, member: _Member) -> tuple[StepMember, tuple[int, int]]:
        """Bring a session into the state that the shape asks for; what it does, and its (new, cached) tokens."""
        session = member.session
        num_cached = self._open(session, member.num_prefill)
        if num_cached > session.num_cached:  # some earlier run of this chunk
            self._engine.evict(session.id)
            num_cached = 0
        self._prefill(session, num_cached)
        num_new = member.num_prefill + (0 if member.draft is None else 1 + len(member.draft))
        return StepMember(session.id, member.num_prefill, member.draft), (num_new, session.num_cached)
