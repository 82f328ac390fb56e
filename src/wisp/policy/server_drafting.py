"""Drafting on the server, beside the target: how many tokens, in rounds that devices decode plainly.

    s, c    share of such rounds in the recent batches, and cached tokens of each
    n, E    new positions and committed tokens of the others;  a: recent acceptance of what is drafted here
    p       positions of prompts per token of their answers, in the long run
    E_k     = s (1 + a + ... + a^k) + (1 - s) E        committed tokens of a round, if k tokens are drafted
    V, D    batch times of the target and of the drafter, which drafts for all of them together
    m_k     rounds of s (k + 1) + (1 - s) n + p E_k positions in a batch: of those that wait, as many as the limits, the
            fastest session's speed, and the KV cache allow, where both models keep a cache if k > 0
    rate    m_k E_k / (V(m_k rounds) + k D(m_k s rounds of 1 + p E_k / k positions))
    K       the shortest k in 0..max whose rate is about the highest

So K falls as batches grow; where prompts, or room in the cache, bound what is served, drafts that only make batches longer,
or take the room of others, are not made. A longer K has to be better by a margin: a drafter that was not asked for a while
has histories to read. While K is 0, a token is drafted now and then: acceptance is only known from drafts.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from math import inf

from wisp.policy.batch_time import BatchShape, BatchTime, BatchTimeModel
from wisp.policy.estimator import BatchTimeEstimator
from wisp.policy.prices import UNASSISTED, PlainRound
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.typical_round import TypicalRound, largest_batch
from wisp.types import Batch, BatchMember, OwnDrafts, SessionId, VerificationRequest

_RARELY = 8
"""Batches after which K is chosen again."""


@dataclass(frozen=True, slots=True)
class ServerDraftingSettings:
    """How far the server drafts, and how it learns what that is worth."""

    max_tokens: int = 5
    margin: float = 0.03
    """By how much a longer K has to be better; within half of it rates are about the same."""
    room_margin: float = 0.15
    """By how much drafting has to be better where its caches take the room of others: a full cache costs more than it
    does on average, since whoever does not fit waits, or is computed anew."""
    probe_share: float = 0.01
    """Of the time, that finding out what is accepted may take while nothing else is drafted."""
    smoothing: float = 0.05
    """Weight of the newest batch in running means."""
    memory: float = 200.0
    """Drafts after which one counts for 1/e in the acceptance."""
    initial_acceptance: float = 0.7
    initial_weight: float = 10.0
    """Drafts that the initial acceptance counts for."""


@dataclass(frozen=True, slots=True)
class _Load:
    """What the choice depends on beside what is smoothed here."""

    target: BatchTime
    limits: SchedulerLimits
    prefill_per_token: float
    fastest: float


@dataclass(slots=True)
class _Crowd:
    """Requests when a batch is formed, and sessions, recent means."""

    waiting: float = 1.0
    outside: float = 0.0
    """Of more requests: they wait for room in the KV cache."""
    inside: float = 1.0
    """Sessions in the KV cache."""


class ServerDrafting:
    """Decides K, and knows what drafting takes."""

    def __init__(self, drafter: BatchTimeModel, settings: ServerDraftingSettings | None = None) -> None:
        self._drafter = drafter
        self._settings = settings or ServerDraftingSettings()
        self._acceptance = _Acceptance(self._settings)
        self._crowd = _Crowd()
        self._share, self._cached = 1.0, 256.0
        self._drafted_share = 0.0
        """Of a batch's requests, those that are drafted for."""
        self._num_assisted = self._sent = self._accepted = 0.0
        """Rounds of a batch that are drafted for, where any are; tokens of each that are verified, and accepted."""
        self._new, self._committed = 1.0, 1.0
        """Positions and committed tokens of the other rounds."""
        self.length = self._settings.max_tokens
        """K: tokens that requests are drafted at present."""
        self._since_choice = 0
        self._probed_at = 0.0
        self._steps = float(self._settings.max_tokens)
        """Of the drafter in a batch with drafts, recent mean: prices cut some."""
        self._known: dict[SessionId, int] = {}
        """Tokens of the histories that the drafter has read."""

    def drafted(self, request: VerificationRequest, now: float) -> VerificationRequest:
        """The request with the draft that the server is going to make for it, if any."""
        most = request.max_own_draft
        if most == 0:
            return request
        if length := min(self.length, most):
            survival = tuple(self._acceptance.mean ** (i + 1) for i in range(length))
        elif self._is_due(request, now):
            length, survival = 1, ()  # nothing is said of it, so that no price cuts it
        else:
            return request
        return replace(request, num_draft_tokens=length, survival=survival, drafted_here=True)

    def _is_due(self, request: VerificationRequest, now: float) -> bool:
        """Whether a token may be drafted to see what becomes of it."""
        taken = self._drafter.predict(BatchShape().plus(*self._first_step(request)))
        if (now - self._probed_at) * self._settings.probe_share < taken:
            return False
        self._probed_at = now
        return True

    def forget(self, session_id: SessionId) -> None:
        """The drafter knows nothing of a session any more."""
        self._known.pop(session_id, None)

    def time(self, shape: BatchShape) -> float:
        """Seconds of the drafter in a batch of this shape, about: as many of its requests are drafted for as lately."""
        if not self.length or not self._drafted_share:
            return 0.0
        size = max(1, round(shape.num_requests * self._drafted_share))
        step = TypicalRound(1.0, shape.num_cached / max(shape.num_requests, 1)).batch(size)
        return min(float(self.length), self._steps) * self._drafter.predict(step)

    def time_of(self, batch: Batch) -> float:
        """Seconds of the drafter in this batch, by what is known of it."""
        drafting = [(member.num_verified or 0, member) for member in batch.members if member.request.drafted_here]
        longest = max((length for length, _ in drafting), default=0)
        return sum(
            self._drafter.predict(BatchShape.of_members(self._step(one, i) for length, one in drafting if length > i))
            for i in range(longest)
        )

    def _step(self, member: BatchMember, index: int) -> tuple[int, int]:
        """New and cached tokens of a step of the drafter."""
        return (1, member.request.num_history_tokens + index - 1) if index else self._first_step(member.request)

    def _first_step(self, request: VerificationRequest) -> tuple[int, int]:
        """The same, of a draft's first step: it reads what the drafter does not know of the history."""
        num_new = max(1, request.num_history_tokens - self._known.get(request.session_id, 0))
        return num_new, request.num_history_tokens - num_new

    def plain_round(self) -> PlainRound:
        """What a round of plain decoding takes and gives at present."""
        if not self.length or not self._num_assisted:
            return UNASSISTED
        step = self._drafter.predict(TypicalRound(1.0, self._cached).batch(max(1, round(self._num_assisted))))
        return PlainRound(1.0 + self._sent, 1.0 + self._accepted, self._steps * step / max(1.0, self._num_assisted))

    # What it learns

    def see(self, num_waiting: int, num_outside: int, num_inside: int) -> None:
        """A batch is formed of `num_waiting` requests; `num_outside` more wait for room beside `num_inside` sessions."""
        crowd = self._crowd
        crowd.waiting = self._smooth(crowd.waiting, num_waiting)
        crowd.outside = self._smooth(crowd.outside, num_outside)
        crowd.inside = self._smooth(crowd.inside, num_inside)

    def observe(self, batch: Batch, num_committed: int, own: OwnDrafts, present: Container[SessionId]) -> None:
        """A batch ran: how many tokens it committed, and what became of the drafts made here; who is `present` still."""
        verified = [member for member in batch.members if member.num_verified is not None]
        if not verified:
            return
        plain = [one for one in verified if one.request.drafted_here or not one.request.num_draft_tokens]
        drafting = [one for one in plain if one.num_verified]
        num_others = len(verified) - len(plain)
        self._share = self._smooth(self._share, len(plain) / len(verified))
        self._drafted_share = self._smooth(self._drafted_share, len(drafting) / len(batch.members))
        histories = sum([one.request.num_history_tokens for one in verified])
        self._cached = self._smooth(self._cached, histories / len(verified))
        if num_others:
            positions = sum([one.num_verified or 0 for one in verified]) - sum([one.num_verified or 0 for one in plain])
            committed = num_committed - len(plain) - own.num_accepted
            self._new = self._smooth(self._new, 1.0 + positions / num_others)
            self._committed = self._smooth(self._committed, committed / num_others)
        if drafting:
            self._steps = self._smooth(self._steps, max(one.num_verified or 0 for one in drafting))
            for one in drafting:
                if one.request.session_id in present:
                    self._known[one.request.session_id] = one.request.num_history_tokens
        if self.length:
            self._observe_assisted([one for one in verified if one.request.drafted_here], own.num_accepted)
        if own.num_drafts:
            self._acceptance.learn(own.num_drafts, own.num_tokens, own.num_accepted)

    def _observe_assisted(self, assisted: Sequence[BatchMember], num_accepted: float) -> None:
        if not assisted:
            return
        number, sent = len(assisted), sum([one.num_verified or 0 for one in assisted])
        keep = 1.0 - self._settings.smoothing if self._num_assisted else 0.0
        self._num_assisted = keep * self._num_assisted + (1.0 - keep) * number
        self._sent = keep * self._sent + (1.0 - keep) * sent / number
        self._accepted = keep * self._accepted + (1.0 - keep) * num_accepted / number

    def choose(
        self, target: BatchTime, limits: SchedulerLimits, prefill_per_token: float | None, fastest: float
    ) -> None:
        """Decide K anew, now and then; the fastest session is of so many tokens per second."""
        self._since_choice += 1
        if self._since_choice < _RARELY:
            return
        self._since_choice = 0
        load = _Load(target, limits, prefill_per_token or 0.0, fastest)
        rates = [self._rate(length, load) for length in range(self._settings.max_tokens + 1)]
        best, margin = max(rates), self._settings.margin
        shortest = next(length for length, rate in enumerate(rates) if (1.0 + margin / 2.0) * rate >= best)
        if shortest < self.length or (1.0 + margin) * rates[self.length] < best:
            self.length = shortest

    def _rate(self, length: int, load: _Load) -> float:
        """Committed tokens per second with drafts of this length, less the margin where they take the room of others."""
        own, others, plain = self._share, 1.0 - self._share, self._of_plain(length)
        committed = own * plain + others * self._committed
        prefill = load.prefill_per_token * committed
        typical = TypicalRound(
            own * (length + 1) + others * self._new + prefill, self._cached, committed, num_prefill=prefill
        )
        read = TypicalRound(1.0 + prefill / max(length, 1), self._cached)

        def time_of(size: int) -> float:
            num_new = max(size, round(size * typical.num_new))
            attended = num_new * (self._cached + typical.num_new / 2)
            time = load.target(BatchShape(num_new, attended, round(size * self._cached), size))
            return time + length * self._drafter.predict(read.batch(max(1, round(size * own))))

        at_hand = self._at_hand(length, load.limits)
        patience = plain / load.fastest if load.fastest else inf
        size = largest_batch(min(typical.most(load.limits), at_hand), patience, time_of)
        crowds_out = at_hand < self._at_hand(0, load.limits)
        margin = self._settings.room_margin if crowds_out else 0.0
        return size * committed / max(time_of(size), 1e-9) / (1.0 + margin)

    def _of_plain(self, length: int) -> float:
        """Committed tokens of a round of plain decoding for which so many are drafted."""
        return sum([self._acceptance.mean**i for i in range(length + 1)])

    def _at_hand(self, length: int, limits: SchedulerLimits) -> float:
        """Requests that wait when a batch is formed, if drafts of this length are made."""
        crowd = self._crowd
        weight = 1.0 + limits.drafter_kv_share if length else 1.0
        fitting = limits.kv_capacity_tokens / max(weight * self._cached, 1.0)
        return min(crowd.waiting + crowd.outside, fitting * min(1.0, crowd.waiting / max(crowd.inside, 1.0)))

    def _smooth(self, mean: float, value: float) -> float:
        return mean + self._settings.smoothing * (value - mean)


class DraftingEstimator:
    """Batch times with the drafter's: a target's estimator, and what drafting adds. See BatchTimeEstimator."""

    def __init__(self, target: BatchTimeEstimator, drafting: ServerDrafting) -> None:
        self.target = target
        self._drafting = drafting

    @property
    def model(self) -> BatchTimeModel:
        """Of the target alone."""
        return self.target.model

    def predict(self, shape: BatchShape) -> float:
        return self.target.predict(shape) + self._drafting.time(shape)

    def upper(self, shape: BatchShape) -> float:
        return self.target.upper(shape) + self._drafting.time(shape)

    def observe(self, shape: BatchShape, elapsed: float) -> None:
        """Of the target alone."""
        self.target.observe(shape, elapsed)


class _Acceptance:
    """The a of recent drafts: that for which a + a^2 + ... + a^length is what was accepted, on average."""

    def __init__(self, settings: ServerDraftingSettings) -> None:
        self.mean = settings.initial_acceptance
        self._memory = settings.memory
        self._drafts = settings.initial_weight
        self._length, self._accepted = self._drafts, self._drafts * self.mean

    def learn(self, num_drafts: int, length: float, num_accepted: float) -> None:
        """Of so many drafts, `length` tokens altogether, so many tokens were accepted."""
        keep = max(0.0, 1.0 - num_drafts / self._memory)
        self._drafts = keep * self._drafts + num_drafts
        self._length = keep * self._length + length
        self._accepted = keep * self._accepted + num_accepted
        self.mean = acceptance_of(self._accepted / self._drafts, self._length / self._drafts)


def acceptance_of(num_accepted: float, length: float) -> float:
    """The a for which drafts of `length` have `num_accepted` tokens accepted on average: a + a^2 + ... + a^length."""
    whole = max(1, round(length))
    share = min(1.0, max(0.0, num_accepted / length))
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        expected = sum(middle ** (i + 1) for i in range(whole)) / whole
        low, high = (middle, high) if expected < share else (low, middle)
    return (low + high) / 2
