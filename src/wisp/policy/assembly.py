"""A batch in the making: what may still join it without anybody missing a deadline because of it.

    B + j is allowed  iff  V(B + j) <= min over i in B + j of (deadline_i - now)

V is the estimate with its safety. The first member may always join: an engine that stands still helps nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from wisp.policy.batch_time import BatchShape
from wisp.policy.scheduler import SchedulerLimits, fit
from wisp.types import BatchMember, SessionId, VerificationRequest

_CHUNKS = (1, 2, 4, 8, 16)
"""A prompt's chunk is cut to these fractions where all of it would take too long."""


class Assembly:
    """Members, their shape, and the time that they have."""

    def __init__(self, limits: SchedulerLimits, time_of: Callable[[BatchShape], float]) -> None:
        self.members: dict[SessionId, BatchMember] = {}
        self.time = 0.0
        """V of what is in it."""
        self._time_of = time_of
        self._shape = BatchShape()
        self._time_left = inf
        self._requests = limits.max_batch_requests
        self._tokens = limits.max_batch_tokens
        self._prefill = limits.max_prefill_tokens

    @property
    def full(self) -> bool:
        """Whether nothing more fits, whatever it is."""
        return self._requests == 0 or self._tokens == 0

    def protect(self, time_left: float) -> None:
        """Let nothing join that makes the batch longer than this, unless it is longer already."""
        if time_left >= self.time:
            self._time_left = min(self._time_left, time_left)

    def add(self, request: VerificationRequest, num_draft_tokens: int, time_left: float) -> bool:
        """Take in a request, with less of its draft or prompt where all would be too much; False: not at all.

        `time_left` is the request's own; where only a chunk of its prompt runs there is nothing it could miss yet.
        """
        member = None
        for member in self._variants(request, num_draft_tokens):
            if self._try(member, time_left):
                return True
        if member is None or self.members:
            return False
        shape = self._shape_with(member)
        self._take(member, shape, self._time_of(shape))
        return True

    def _variants(self, request: VerificationRequest, num_draft_tokens: int) -> Iterator[BatchMember]:
        """Ways to take a request in, the dearest first."""
        if self.full:
            return
        drafts = (num_draft_tokens, 0) if num_draft_tokens else (0,)
        for part in _CHUNKS if request.num_prefill_tokens else _CHUNKS[:1]:
            prefill = -(-self._prefill // part)
            for num_draft in drafts:
                member = fit(request, num_draft, self._tokens, prefill)
                if member is not None:
                    yield member

    def _try(self, member: BatchMember, time_left: float) -> bool:
        shape = self._shape_with(member)
        own = time_left if member.completes else inf
        # Only the first verification is not bound by what protects others: somebody has to be served.
        others = self._time_left if self.members or member.num_prefill_tokens else inf
        time = self._time_of(shape)
        if time > own or time > others:
            return False
        self._time_left = min(self._time_left, own)
        self._take(member, shape, time)
        return True

    def _take(self, member: BatchMember, shape: BatchShape, time: float) -> None:
        self.members[member.request.session_id] = member
        self._shape, self.time = shape, time
        self._time_left = max(self._time_left, time)
        self._requests -= 1
        self._tokens -= member.num_new_tokens
        self._prefill -= member.num_prefill_tokens

    def _shape_with(self, member: BatchMember) -> BatchShape:
        return self._shape.plus(member.num_new_tokens, member.request.num_cached_tokens)
