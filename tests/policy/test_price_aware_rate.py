"""The price-aware rule against the best fixed length: a device alone on its server, in virtual time.

Every drafted token is accepted with probability a, whatever came before. Then K drafted tokens a round give

    (1 + a + ... + a^K) / (K t_d + R) tokens per second, and plain decoding 1 / t_0.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import pytest

from tests.policy.test_controller import draft_of
from wisp.policy.controller import FixedLength, RoundContext, StopRule
from wisp.policy.measurements import Measurements
from wisp.policy.price_aware import PriceAware
from wisp.policy.session import Session, SessionSettings
from wisp.types import (
    DecodeRequest,
    DraftedToken,
    GenerationRequest,
    Hints,
    Prices,
    SamplingParams,
    StopRules,
    Verdict,
)

MAX_TOKENS = 12
STREAMED = SessionSettings().decode_tokens


@dataclass(frozen=True, slots=True)
class Cell:
    """A device and its server; seconds."""

    draft_time: float
    rtt: float
    server_time: float
    acceptance: float

    @property
    def plain_token_time(self) -> float:
        return self.server_time + self.rtt / STREAMED

    def rate(self, num_drafted: int) -> float:
        """Expected tokens per second of a fixed length."""
        if not num_drafted:
            return 1.0 / self.plain_token_time
        committed = sum(self.acceptance**i for i in range(num_drafted + 1))
        return committed / (num_drafted * self.draft_time + self.rtt + self.server_time)

    @property
    def best_rate(self) -> float:
        return max(self.rate(k) for k in range(MAX_TOKENS + 1))


GRID = [
    Cell(*values)
    for values in product(
        (0.002, 0.005, 0.02, 0.06, 0.2),
        (0.0, 0.01, 0.05, 0.15),
        (0.01, 0.03, 0.1),
        (0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97),
    )
]


def chosen_length(cell: Cell) -> int:
    """What the rule drafts where everything is known as it is."""
    context = RoundContext(
        token_time=cell.draft_time,
        rtt=cell.rtt,
        prices=Prices(),
        acceptance=cell.acceptance,
        num_judged=1000.0,
        first_token_time=cell.draft_time,
        round_time=cell.rtt + cell.server_time,
        plain_token_time=cell.plain_token_time,
    )
    rule, num_drafted = PriceAware(MAX_TOKENS), 0
    while rule.keep_drafting(draft_of(rule, [None] * num_drafted, context), context):
        num_drafted += 1
    return num_drafted


def test_a_rule_that_knows_everything_drafts_as_well_as_the_best_fixed_length() -> None:
    """By enumeration of the lengths: at least 0.99 of the best rate in every one of 420 cells."""
    shares = {cell: cell.rate(chosen_length(cell)) / cell.best_rate for cell in GRID}
    worst = min(shares, key=lambda cell: shares[cell])
    assert shares[worst] >= 0.99, worst


def run(rule: StopRule, cell: Cell, num_tokens: int, chance: random.Random, earlier: Measurements | None) -> Session:
    """One generation of a device that knows nothing but what its sessions measure."""
    request = GenerationRequest((1,), 1, SamplingParams(), StopRules(num_tokens))
    session, now = Session(request, rule, SessionSettings(), None, 0.0, earlier), 0.0
    hints = Hints(verification_time=cell.server_time)
    while session.num_output_tokens < num_tokens:
        session.begin_round(now)
        while session.wants_draft_token:
            now += cell.draft_time
            session.on_draft_token(DraftedToken(0), now)
        asked = session.request(now, may_draft=rule != FixedLength(0))
        now += cell.rtt
        if isinstance(asked, DecodeRequest):
            for index in range(asked.num_tokens):
                now += cell.server_time
                final = index == asked.num_tokens - 1
                session.on_verdict(Verdict(session.round, 0, 0, 0, final=final, hints=hints), now)
        else:
            num_drafted, num_accepted = len(asked.tokens), 0
            while num_accepted < num_drafted and chance.random() < cell.acceptance:
                num_accepted += 1
            now += cell.server_time
            session.on_verdict(Verdict(session.round, num_drafted, num_accepted, 0, hints=hints), now)
    return session


def measured_rate(rule: StopRule, cell: Cell, num_sessions: int = 6, num_tokens: int = 400) -> float:
    """Tokens per second of one device over some sessions, the first of which begins without knowledge."""
    chance, session, elapsed = random.Random(0), None, 0.0
    for _ in range(num_sessions):
        session = run(rule, cell, num_tokens, chance, session.measured if session else None)
        elapsed += session.token_times[-1] - session.token_times[0]
    return num_sessions * (num_tokens - 1) / elapsed


def test_fixed_lengths_run_at_their_rates() -> None:
    """The model that the rule is measured by agrees with its formula."""
    cell = Cell(0.02, 0.05, 0.03, 0.8)
    assert measured_rate(FixedLength(0), cell, 4, 2000) == pytest.approx(1.0 / cell.server_time, rel=0.05)
    for num_drafted in (1, 5, 12):
        assert measured_rate(FixedLength(num_drafted), cell, 4, 2000) == pytest.approx(cell.rate(num_drafted), rel=0.05)


def test_a_rule_that_learns_as_it_goes_is_close_to_the_best_fixed_length() -> None:
    """Six sessions of 400 tokens, nothing known at the first: on average, and in nearly all cells."""
    cells = [Cell(*values) for values in product((0.005, 0.06), (0.01, 0.15), (0.01, 0.1), (0.2, 0.6, 0.8, 0.97))]
    shares = sorted(measured_rate(PriceAware(MAX_TOKENS), cell) / cell.best_rate for cell in cells)
    assert sum(shares) / len(shares) >= 0.97
    assert shares[len(shares) // 10] >= 0.95
    assert shares[0] >= 0.85
