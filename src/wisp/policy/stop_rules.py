"""The stop rules by name, each made from the same terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wisp.errors import ConfigError
from wisp.policy.controller import (
    CONFIDENCE_THRESHOLD,
    ENTROPY_THRESHOLD,
    REJECTION_THRESHOLD,
    ConfidenceThreshold,
    EntropyRule,
    FixedLength,
    PredictedRejection,
    StopRule,
)
from wisp.policy.predictor import AcceptancePredictor
from wisp.policy.price_aware import PriceAware


@dataclass(frozen=True, slots=True)
class StopTerms:
    """What a stop rule is made from."""

    max_tokens: int
    threshold: float | None = None
    """None: the rule's own."""
    predictor: AcceptancePredictor | None = None


def make_stop_rule(name: str, terms: StopTerms) -> StopRule:
    """The rule called `name`. Raises ConfigError where it needs a predictor and there is none."""
    return STOP_RULES[name](terms)


def _predicted(terms: StopTerms) -> StopRule:
    if terms.predictor is None:
        raise ConfigError("the stop rule predicted needs a predictor (--predictor); entropy and price do without one")
    return PredictedRejection(terms.predictor, _or(terms.threshold, REJECTION_THRESHOLD), terms.max_tokens)


def _or(threshold: float | None, otherwise: float) -> float:
    return otherwise if threshold is None else threshold


STOP_RULES: Mapping[str, Callable[[StopTerms], StopRule]] = {
    "fixed": lambda terms: FixedLength(terms.max_tokens),
    "confidence": lambda terms: ConfidenceThreshold(_or(terms.threshold, CONFIDENCE_THRESHOLD), terms.max_tokens),
    "predicted": _predicted,
    "entropy": lambda terms: EntropyRule(terms.max_tokens, _or(terms.threshold, ENTROPY_THRESHOLD)),
    "price": lambda terms: PriceAware(terms.max_tokens, terms.predictor),
}
