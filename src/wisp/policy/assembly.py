"""A batch in the making: what may still join it without anybody missing a deadline because of it.

    B + j is allowed  iff  V(B + j) <= min over i in B + j of (deadline_i - now)

V is the estimate with its safety. The first member may always join: an engine that stands still helps nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from wisp.policy.batch_time import BatchShape
from wisp.policy.scheduler import SchedulerLimits, fit
from wisp.types import BatchMember, SessionId, VerificationRequest

_CHUNKS = (1, 2, 4, 8, 16)
"""A prompt's chunk is cut to these fractions where all of it would take too long."""
_WHOLE = (1,)


class Assembly:
    """Members, their shape, and the time that they have."""

    def __init__(self, limits: SchedulerLimits, time_of: Callable[[BatchShape], float]) -> None:
        self.members: dict[SessionId, BatchMember] = {}
        self.time = 0.0
        """V of what is in it."""
        self.full = False
        """Whether nothing more fits, whatever it is."""
        self._time_of = time_of
        self._shape = BatchShape()
        self._time_left = inf
        self._requests = limits.max_batch_requests
        self._tokens = limits.max_batch_tokens
        self._prefill = limits.max_prefill_tokens

    def protect(self, time_left: float) -> None:
        """Let nothing join that makes the batch longer than this, unless it is longer already."""
        if time_left >= self.time:
            self._time_left = min(self._time_left, time_left)

    def add(self, request: VerificationRequest, num_draft_tokens: int, time_left: float) -> bool:
        """Take in a request, with less of its draft or prompt where all would be too much; False: not at all.

        `time_left` is the request's own; where only a chunk of its prompt runs there is nothing it could miss yet.
        """
        if self.full:
            return False
        last = None
        has_prefill = request.num_history_tokens - 1 > request.num_cached_tokens
        for part in _CHUNKS if has_prefill else _WHOLE:
            prefill = -(-self._prefill // part)
            for num_draft in (num_draft_tokens, 0) if num_draft_tokens else (0,):
                member = fit(request, num_draft, self._tokens, prefill)
                if member is None:
                    break
                if self._try(member, time_left):
                    return True
                last = member
                if member.num_verified is None:
                    break
        if last is None or self.members:
            return False
        return self._try(last, inf, forced=True)

    def _try(self, member: BatchMember, time_left: float, *, forced: bool = False) -> bool:
        """Take a member in, if nobody misses because of it or if it has to be."""
        num_new, own = member.num_prefill_tokens, inf
        if member.num_verified is not None:
            num_new, own = num_new + 1 + member.num_verified, time_left
        shape = self._shape.plus(num_new, member.request.num_cached_tokens)
        time = self._time_of(shape)
        # Only the first verification is not bound by what protects others: somebody has to be served.
        others = self._time_left if self.members or member.num_prefill_tokens else inf
        if not forced and (time > own or time > others):
            return False
        left = self._time_left if self._time_left < own else own
        self._time_left = time if time > left else left
        self.members[member.request.session_id] = member
        self._shape, self.time = shape, time
        self._requests -= 1
        self._tokens -= num_new
        self.full = self._requests == 0 or self._tokens == 0
        self._prefill -= member.num_prefill_tokens
        return True
