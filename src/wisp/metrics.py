"""What goodput, wasted drafting time, interference, SLO attainment and capacity mean.

Round r of a session drafts k tokens of t_d seconds each; n <= k are verified, A <= n accepted. An SLO is a speed of s
tokens per second and a limit to the first token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from wisp.policy.session import RoundRecord
from wisp.types import SLO, STARTUP_TIME, Batch

IN_TIME_SHARE = 0.95
"""Of a session's tokens, for the session to count as attained."""


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

    def __add__(self, other: DraftingSummary) -> DraftingSummary:
        """Both sets of rounds together."""
        return DraftingSummary(
            self.num_drafted + other.num_drafted,
            self.num_verified + other.num_verified,
            self.num_accepted + other.num_accepted,
            self.num_committed + other.num_committed,
            self.draft_time + other.draft_time,
            self.wasted_time + other.wasted_time,
            self.trimmed_time + other.trimmed_time,
        )

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
    num_drafted = num_verified = num_accepted = num_committed = 0
    draft_time = wasted_time = trimmed_time = 0.0
    for record in records:
        num_committed += record.num_committed
        if record.num_drafted:
            num_drafted += record.num_drafted
            num_verified += record.num_verified
            num_accepted += record.num_accepted
            draft_time += record.draft_time
            wasted_time += wasted_drafting_time(record)
            trimmed_time += trimmed_drafting_time(record)
    return DraftingSummary(
        num_drafted, num_verified, num_accepted, num_committed, draft_time, wasted_time, trimmed_time
    )


@dataclass(frozen=True, slots=True)
class SessionOutcome:
    """What became of one offered session; times by one clock, in seconds."""

    slo: SLO
    offered: float
    token_times: Sequence[float]
    """When each output token reached the device, in order."""
    finished: bool
    """False: refused, failed, timed out or cut off."""
    startup_time: float = STARTUP_TIME
    """Between the first token's arrival and the start of its playback."""

    @property
    def first_token_in_time(self) -> bool:
        return bool(self.token_times) and self.token_times[0] <= self.offered + self.slo.first_token_s

    @property
    def in_time(self) -> list[bool]:
        """Per token m: whether it came by its playback deadline d_m = t_first + startup + m / s."""
        if not self.token_times:
            return []
        playback, interval = self.token_times[0] + self.startup_time, 1.0 / self.slo.tokens_per_s
        return [time <= playback + m * interval for m, time in enumerate(self.token_times)]

    @property
    def attained(self) -> bool:
        """Finished, the first token in time, and at least 95 % of its tokens in time."""
        if not (self.finished and self.first_token_in_time):
            return False
        in_time = self.in_time
        return sum(in_time) >= IN_TIME_SHARE * len(in_time)


def attainment(outcomes: Iterable[SessionOutcome]) -> float:
    """Attained over offered sessions; 1 where none was offered."""
    attained = [outcome.attained for outcome in outcomes]
    return sum(attained) / len(attained) if attained else 1.0


def attainment_by_class(outcomes: Iterable[SessionOutcome]) -> dict[str, float]:
    """Attainment of each SLO class, by name."""
    classes: dict[str, list[SessionOutcome]] = {}
    for outcome in outcomes:
        classes.setdefault(outcome.slo.name, []).append(outcome)
    return {name: attainment(classes[name]) for name in sorted(classes)}


def goodput(outcomes: Iterable[SessionOutcome], start: float, end: float) -> float:
    """Tokens per second that came in time from `start` to `end`, of sessions whose first token was in time."""
    num_tokens = 0
    for outcome in outcomes:
        if outcome.first_token_in_time:
            times = outcome.token_times
            num_tokens += sum(outcome.in_time[bisect_left(times, start) : bisect_left(times, end)])
    return num_tokens / (end - start)


def within_capacity(overall: float, by_class: Mapping[str, float], level: float = 0.95, margin: float = 0.05) -> bool:
    """Whether a load is served: attainment of at least `level` overall, and `margin` less in every class."""
    return overall >= level and all(share >= level - margin for share in by_class.values())


@dataclass(frozen=True, slots=True)
class ServerCost:
    """What the server spent."""

    num_positions: int
    """Computed by the target."""
    engine_time: float
    """Seconds."""
    num_committed: int
    """Tokens that came of it."""

    @property
    def positions_per_token(self) -> float:
        """Target positions per committed token; 0 where nothing was committed."""
        return self.num_positions / self.num_committed if self.num_committed else 0.0

    @property
    def engine_time_per_token(self) -> float:
        """Engine seconds per committed token; 0 where nothing was committed."""
        return self.engine_time / self.num_committed if self.num_committed else 0.0


def verification_interference(batch: Batch, together: float, alone: Callable[[int, int], float]) -> list[float]:
    """V(B) - V({j}) of each request j that is verified in batch B: seconds that it waits for the others' tokens.

    `together` is V(B); `alone` gives V({j}) from the new and the cached tokens of j.
    """
    return [
        together - alone(member.num_prefill_tokens + 1 + member.num_verified, member.request.num_cached_tokens)
        for member in batch.members
        if member.num_verified is not None
    ]


def _token_time(record: RoundRecord) -> float:
    return record.draft_time / record.num_drafted if record.num_drafted else 0.0
