"""SLED's batches: a fixed number of requests is waited for, at most for so long, in the order of arrival."""

from __future__ import annotations

from wisp.policy.scheduler import FCFSScheduler, SchedulerLimits
from wisp.types import Batch, WaitUntil


class StaticBatchScheduler(FCFSScheduler):
    """First come, first served, in batches of `size` requests; fewer once the oldest has waited `flush_time` seconds."""

    def __init__(self, limits: SchedulerLimits, size: int, flush_time: float) -> None:
        super().__init__(limits)
        self._size = min(size, limits.max_batch_requests)
        self._flush_time = flush_time

    def schedule(self, now: float) -> Batch | WaitUntil:
        flush_at = self._first_arrival + self._flush_time
        if len(self._waiting) < self._size and now < flush_at:
            return WaitUntil(flush_at)
        return super().schedule(now)

    def _most_members(self) -> int:
        return self._size
