"""Drafting on the server, beside the target: how many tokens, for sessions whose devices draft nothing (a baseline).

    m, c    requests per batch and cached tokens of each, recent means;  a: recent acceptance
    V, D    batch times of the target and of the drafter, which drafts for all requests of a batch together
    K       the k in 0..max that commits most per second:  m (1 + a + ... + a^k) / (V(m requests of k + 1) + k D(m of 1))

so K falls as the batches grow, as it does in servers that switch speculation off under load. The draft's time is part
of the step's. While K is 0, every `probe_every`-th request drafts one token: acceptance is only known from drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.prices import TypicalRound
from wisp.policy.scheduler import Scheduler
from wisp.types import (
    Admitted,
    Batch,
    Prices,
    RetryAfter,
    SessionDemand,
    SessionId,
    VerificationRequest,
    WaitUntil,
)


@dataclass(frozen=True, slots=True)
class CoLocatedSettings:
    """How far the server drafts, and how it learns what that is worth."""

    max_tokens: int = 5
    probe_every: int = 32
    smoothing: float = 0.05
    """Weight of the newest batch in running means."""
    initial_acceptance: float = 0.7


class CoLocatedDrafting:
    """A scheduler whose requests of plain decoding are drafted by the server; see Scheduler."""

    def __init__(
        self,
        inner: Scheduler,
        target: Callable[[], BatchTimeModel],
        drafter: BatchTimeModel,
        settings: CoLocatedSettings | None = None,
    ) -> None:
        self._inner = inner
        self._target = target
        self._drafter = drafter
        self._settings = settings or CoLocatedSettings()
        self._acceptance = self._settings.initial_acceptance
        self._size, self._cached = 1.0, 256.0
        self._length = self._best_length()
        self._since_probe = 0

    @property
    def inner(self) -> Scheduler:
        """Whose batches they are."""
        return self._inner

    @property
    def length(self) -> int:
        """K: tokens that requests are drafted at present."""
        return self._length

    def add(self, request: VerificationRequest) -> None:
        length = min(self._probed_length(), request.max_own_draft)
        if length > 0 and request.num_draft_tokens == 0:
            survival = tuple(self._acceptance ** (i + 1) for i in range(length))
            request = replace(request, num_draft_tokens=length, survival=survival, drafted_here=True)
        self._inner.add(request)

    def observe(self, batch: Batch, now: float, elapsed: float, num_committed: int) -> None:
        self._inner.observe(batch, now, elapsed, num_committed)
        verified = [member.num_verified for member in batch.members if member.num_verified is not None]
        if not verified:
            return
        shape = BatchShape.of(batch)
        self._size = self._smooth(self._size, len(verified))
        self._cached = self._smooth(self._cached, shape.num_cached / shape.num_requests)
        if sum(verified):
            accepted = (num_committed - len(verified)) / len(verified)
            self._acceptance = self._smooth(self._acceptance, _acceptance(accepted, sum(verified) / len(verified)))
        self._length = self._best_length()

    def _probed_length(self) -> int:
        self._since_probe += 1
        if self._length == 0 and self._since_probe < self._settings.probe_every:
            return 0
        self._since_probe = 0
        return max(self._length, 1)

    def _best_length(self) -> int:
        return max(range(self._settings.max_tokens + 1), key=self._rate)

    def _rate(self, length: int) -> float:
        """Committed tokens per second of the recent mean batch with drafts of this length."""
        size = max(1, round(self._size))
        committed = sum(self._acceptance**i for i in range(length + 1))
        time = self._target().predict(TypicalRound(length + 1, self._cached).batch(size))
        time += length * self._drafter.predict(TypicalRound(1, self._cached).batch(size))
        return size * committed / max(time, 1e-9)

    def _smooth(self, mean: float, value: float) -> float:
        return mean + self._settings.smoothing * (value - mean)

    # The rest is the inner scheduler's

    def admit(self, session: SessionDemand, now: float) -> Admitted | RetryAfter:
        return self._inner.admit(session, now)

    def release(self, session_id: SessionId) -> None:
        self._inner.release(session_id)

    def cancel(self, session_id: SessionId) -> None:
        self._inner.cancel(session_id)

    def cached(self, session_id: SessionId, num_cached_tokens: int, now: float) -> None:
        self._inner.cached(session_id, num_cached_tokens, now)

    def schedule(self, now: float) -> Batch | WaitUntil:
        return self._inner.schedule(now)

    def evictions(self) -> tuple[SessionId, ...]:
        return self._inner.evictions()

    def prices(self) -> Prices:
        return self._inner.prices()


def _acceptance(num_accepted: float, length: float) -> float:
    """The a for which drafts of `length` have `num_accepted` tokens accepted on average: a + a^2 + ... + a^length."""
    whole = max(1, round(length))
    share = min(1.0, max(0.0, num_accepted / length))
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        expected = sum(middle ** (i + 1) for i in range(whole)) / whole
        low, high = (middle, high) if expected < share else (low, middle)
    return (low + high) / 2
