"""What goodput, wasted drafting time, interference, SLO attainment and capacity mean.

Round r of a session drafts k tokens of t_d seconds each; n <= k are verified, A <= n accepted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wisp.policy.session import RoundRecord


@dataclass(frozen=True, slots=True)
class DraftingSummary:
    """What drafting cost and gave over a set of rounds; times in seconds."""

    num_drafted: int
    num_verified: int
    num_accepted: int
    num_committed: int
    draft_time: float
    wasted_time: float
    """Spent past the first rejected token of each round."""
    trimmed_time: float
    """Spent on tokens that the server did not verify."""

    @property
    def accepted_share(self) -> float:
        """Accepted over drafted tokens; 0 where nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    @property
    def waste_ratio(self) -> float:
        """Wasted over all drafting time; 0 where nothing was drafted."""
        return self.wasted_time / self.draft_time if self.draft_time else 0.0


def wasted_drafting_time(record: RoundRecord) -> float:
    """t_d * (k - A - 1) if a verified token was rejected (A < n), else 0: the time past the rejected token."""
    if record.num_accepted >= record.num_verified:
        return 0.0
    return _token_time(record) * (record.num_drafted - record.num_accepted - 1)


def trimmed_drafting_time(record: RoundRecord) -> float:
    """t_d * (k - n) if all verified tokens were accepted, else 0 (then it is part of the waste)."""
    if record.num_accepted < record.num_verified:
        return 0.0
    return _token_time(record) * (record.num_drafted - record.num_verified)


def summarise_drafting(records: Iterable[RoundRecord]) -> DraftingSummary:
    """Add up the rounds of one or many sessions."""
    rounds = list(records)
    return DraftingSummary(
        num_drafted=sum(record.num_drafted for record in rounds),
        num_verified=sum(record.num_verified for record in rounds),
        num_accepted=sum(record.num_accepted for record in rounds),
        num_committed=sum(record.num_committed for record in rounds),
        draft_time=sum(record.draft_time for record in rounds if record.num_drafted),
        wasted_time=sum(wasted_drafting_time(record) for record in rounds),
        trimmed_time=sum(trimmed_drafting_time(record) for record in rounds),
    )


def _token_time(record: RoundRecord) -> float:
    return record.draft_time / record.num_drafted if record.num_drafted else 0.0
