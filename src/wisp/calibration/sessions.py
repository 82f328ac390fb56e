"""The sessions that a sweep measures batches of: histories of many lengths, cached, with something to prefill after it.

All histories begin alike: an engine that finds cached prefixes computes the longest one only, and copies it to the
others. What follows the cached part is new each time, so that measured chunks are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from wisp.engines.base import StepMember, TargetEngine
from wisp.errors import FormatError, InvalidRequest
from wisp.types import GenerationRequest, SamplingParams, StopRules, TokenId

OWNER = "wisp-calibration"
_SHORTEST = 16
"""Cached tokens of the shortest history, and the first chunk that is tried."""
_LONGEST_SHARE = 0.6
"""Of the time for filling caches, spent on the longest history."""
_MIN_SESSIONS = 4
_LONGEST_STEP = 0.15
"""Of that time, for one chunk; longer ones are left out of the sweep."""


@dataclass(frozen=True, slots=True)
class SweepSession:
    """A history by how much of it is cached before each batch."""

    id: str
    num_cached: int


class SweepSessions:
    """Open within the `with` block, and gone afterwards."""

    def __init__(
        self, engine: TargetEngine, rng: np.random.Generator, *, max_cached: int, max_chunk: int, max_new: int
    ) -> None:
        self.all: list[SweepSession] = []
        self.max_chunk = max_chunk
        """Tokens of a measured chunk: less than was asked for where the engine would take too long for them."""
        self._engine = engine
        self._rng = rng
        self._num_opened = 0
        self._reserve = max_chunk + max_new + 2
        """Tokens that a session may need beside those that are cached."""
        self._room = engine.kv_capacity_tokens // 2
        """Tokens of the cache that the sweep may fill."""
        beside = _MIN_SESSIONS * (self._reserve + engine.kv_page_tokens)
        fits = min(engine.card.context_length - self._reserve, (self._room - beside) // 2)
        self._beginning = self._tokens(max(1, min(max_cached, fits)))
        """Of every history."""

    def __enter__(self) -> SweepSessions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self.all:
            self._engine.evict(session.id)
            self._engine.close(session.id)

    def fill(self, number: int, clock: Callable[[], float], until: float) -> None:
        """Open up to `number` sessions; the step that is computed at `until` is the last. Raises FormatError."""
        longest = self._fill_longest(clock, clock() + _LONGEST_SHARE * (until - clock()))
        lengths = np.geomspace(longest, min(_SHORTEST, longest), number)[1:]
        for length in self._rng.permutation(lengths):
            if clock() > until or not self._fits(round(length)):
                break
            self.prepare(self._add(round(length)), 0)
        if len(self.all) < min(number, _MIN_SESSIONS):
            raise FormatError(
                f"only {len(self.all)} histories could be cached, which says nothing of larger batches: allow more time, "
                f"or a larger KV cache than {self._engine.kv_capacity_tokens} tokens"
            )

    def prepare(self, session: SweepSession, num_prefill: int) -> None:
        """Bring a session into its state, with `num_prefill` tokens of its history left to compute."""
        num_cached = self._open(session, num_prefill)
        while num_cached > session.num_cached:  # the engine remembers what followed last time
            num_cached = self._open(session, num_prefill)
        while num_cached < session.num_cached:
            chunk = min(self.max_chunk, session.num_cached - num_cached)
            self._engine.step([StepMember(session.id, chunk)])
            num_cached += chunk

    def _fill_longest(self, clock: Callable[[], float], until: float) -> int:
        """Open the first session and fill its cache in growing chunks while there is time; returns how far it came."""
        most, began, num_cached, chunk = len(self._beginning), clock(), 0, min(_SHORTEST, self.max_chunk)
        self._open(self._add(most), 0)
        while num_cached < most and (num_cached == 0 or clock() < until):
            started, size = clock(), min(chunk, most - num_cached)
            self._engine.step([StepMember(self.all[0].id, size)])
            num_cached += size
            if 2.0 * (clock() - started) <= _LONGEST_STEP * (until - began):
                chunk = min(2 * chunk, self.max_chunk)
        self.max_chunk = chunk
        self.all[0] = SweepSession(self.all[0].id, num_cached)
        return num_cached

    def _fits(self, num_cached: int) -> bool:
        page = self._engine.kv_page_tokens
        needed = sum(session.num_cached for session in self.all) + num_cached
        return needed + (len(self.all) + 1) * (self._reserve + page) <= self._room

    def _add(self, num_cached: int) -> SweepSession:
        self.all.append(SweepSession(f"calibration-{len(self.all)}", num_cached))
        return self.all[-1]

    def _tokens(self, number: int) -> tuple[TokenId, ...]:
        return tuple(self._rng.integers(0, self._engine.card.vocabulary_size, number).tolist())

    def _open(self, session: SweepSession, num_prefill: int) -> int:
        """Open (again) with what is to be cached or prefilled, and a last token; returns what is cached."""
        self._num_opened += 1
        vocabulary, following = self._engine.card.vocabulary_size, self._beginning[session.num_cached :]
        first = (
            following[0] if following else 0
        ) + self._num_opened  # so that no other history goes on in the same way
        tokens = (*self._beginning[: session.num_cached], first % vocabulary, *self._tokens(num_prefill))
        stop = StopRules(self._engine.card.context_length - len(tokens))
        request = GenerationRequest(tokens, len(tokens), SamplingParams(), stop)
        try:
            return self._engine.open(session.id, OWNER, request)
        except InvalidRequest as error:
            self.all = [other for other in self.all if other.id != session.id]
            card = self._engine.card
            why = "is emulated: its batch times are those that it was given" if card.emulated else f"refuses: {error}"
            raise FormatError(f"{card.model_id} cannot be calibrated, it {why}") from error
