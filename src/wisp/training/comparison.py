"""Every stop rule on the same prompts and speeds: each tuned on the tuning prompts, reported on the test prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wisp.formats.trace import TraceRecord
from wisp.policy.controller import ConfidenceThreshold, EntropyRule, FixedLength, PredictedRejection, StopRule
from wisp.policy.predictor import MlpPredictor
from wisp.policy.price_aware import PriceAware
from wisp.training.replay import Replayed, Speeds, ratio_interval, replay

MAX_TOKENS = 12
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ENTROPY_THRESHOLDS = (-0.4, -0.3, -0.2, -0.1, 0.0, *THRESHOLDS)
"""Lower ones, since the bound that they are compared with is low."""
CELLS = (
    Speeds("fast drafts, near server", draft_s=0.005, rtt_s=0.01, server_s=0.06),
    Speeds("fast drafts, far server", draft_s=0.005, rtt_s=0.06, server_s=0.06),
    Speeds("slow drafts, near server", draft_s=0.03, rtt_s=0.01, server_s=0.06),
    Speeds("slow drafts, far server", draft_s=0.03, rtt_s=0.06, server_s=0.06),
)

Rules = Mapping[str, StopRule | None]
"""By their settings; None: the oracle."""


@dataclass(frozen=True, slots=True)
class Row:
    """One rule in one cell, with the settings that were best on the tuning prompts."""

    cell: str
    rule: str
    settings: str
    tokens_per_s: float
    accepted_share: float
    drafted_per_token: float
    """Drafted over committed tokens: what it costs the device."""
    of_best_fixed: float
    """Tokens per second over those of the best fixed K."""
    low: float
    high: float
    """95 % interval of that ratio over the prompts."""


@dataclass(frozen=True, slots=True)
class FixedRow:
    """One fixed length in one cell."""

    cell: str
    k: int
    accepted_share: float
    tokens_per_s: float


def candidates(predictor: MlpPredictor, threshold: float) -> dict[str, Rules]:
    """The rules, each with the settings to choose from; `threshold`: what the predictor's file recommends."""
    predicted = {
        f"{t}{', sent' if include else ''}": PredictedRejection(predictor, t, MAX_TOKENS, include_suspicious=include)
        for t in THRESHOLDS
        for include in (False, True)
    }
    return {
        "best fixed K": {f"K = {k}": FixedLength(k) for k in range(1, MAX_TOKENS + 1)},
        "plain decoding": {"K = 0": FixedLength(0)},
        "confidence threshold": {str(t): ConfidenceThreshold(t, MAX_TOKENS) for t in THRESHOLDS},
        "entropy": {str(t): EntropyRule(MAX_TOKENS, t) for t in ENTROPY_THRESHOLDS},
        "predicted rejection": predicted,
        "the same, as recommended": {str(threshold): PredictedRejection(predictor, threshold, MAX_TOKENS)},
        "price-aware, confidence": {"": PriceAware(MAX_TOKENS)},
        "price-aware, predictor": {"": PriceAware(MAX_TOKENS, predictor)},
        "oracle": {"": None},
    }


def compare(
    tune: Sequence[TraceRecord],
    test: Sequence[TraceRecord],
    predictor: MlpPredictor,
    threshold: float,
    cells: Sequence[Speeds] = CELLS,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """The table; `advance` is called after each rule in each cell."""
    rows = []
    for cell in cells:
        fixed: Replayed | None = None
        for name, rules in candidates(predictor, threshold).items():
            best = best_settings(tune, rules, cell)
            found = replay(test, rules[best], cell)
            fixed = fixed or found
            rows.append(_row(cell, name, best, found, fixed))
            advance()
    return rows


def best_settings(tune: Sequence[TraceRecord], rules: Rules, speeds: Speeds) -> str:
    """The settings that give the most tokens per second."""
    if len(rules) == 1:
        return next(iter(rules))
    return max(rules, key=lambda settings: replay(tune, rules[settings], speeds).rate)


def fixed_lengths(test: Sequence[TraceRecord], cells: Sequence[Speeds] = CELLS) -> list[FixedRow]:
    """Every fixed K in every cell."""
    return [
        FixedRow(cell.name, k, found.drafting.accepted_share, found.rate)
        for cell in cells
        for k in range(1, MAX_TOKENS + 1)
        for found in [replay(test, FixedLength(k), cell)]
    ]


def best_threshold(tune: Sequence[TraceRecord], predictor: MlpPredictor, speeds: Speeds = CELLS[0]) -> float:
    """Of predicted rejection, the suspicious token withheld: what a predictor file recommends."""
    rules = {str(t): PredictedRejection(predictor, t, MAX_TOKENS) for t in THRESHOLDS}
    return float(best_settings(tune, rules, speeds))


def _row(cell: Speeds, rule: str, settings: str, found: Replayed, fixed: Replayed) -> Row:
    low, high = ratio_interval(found, fixed)
    return Row(
        cell=cell.name,
        rule=rule,
        settings=settings,
        tokens_per_s=found.rate,
        accepted_share=found.drafting.accepted_share,
        drafted_per_token=found.drafting.num_drafted / max(sum(found.tokens), 1),
        of_best_fixed=found.rate / fixed.rate,
        low=low,
        high=high,
    )
