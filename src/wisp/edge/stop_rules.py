"""The stop rules that a device offers by name, and the predictor that some of them ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wisp.edge.target import TargetInfo
from wisp.engines.base import DraftEngine
from wisp.errors import ConfigError, FormatError
from wisp.formats.predictor import TrainedPredictor
from wisp.policy.controller import (
    CONFIDENCE_THRESHOLD,
    ENTROPY_THRESHOLD,
    ConfidenceThreshold,
    EntropyRule,
    FixedLength,
    PredictedRejection,
    StopRule,
)
from wisp.policy.price_aware import PriceAware


@dataclass(frozen=True, slots=True)
class StopTerms:
    """What a stop rule is made from."""

    max_tokens: int
    threshold: float | None = None
    """None: the rule's own."""
    trained: TrainedPredictor | None = None


def make_stop_rule(name: str, terms: StopTerms) -> StopRule:
    """The rule called `name`. Raises ConfigError where it needs a predictor and there is none."""
    return _RULES[name](terms)


def check_predictor(trained: TrainedPredictor, engine: DraftEngine, target: TargetInfo) -> None:
    """Refuse a predictor of another pair of models. Raises FormatError."""
    pair = trained.pair
    for what, expected, found in (
        ("vocabulary", pair.vocabulary, target.vocabulary),
        ("target", pair.target, target.model_id),
        ("weights of the drafter", pair.draft_weights, engine.weights),
    ):
        if expected != found:
            raise FormatError(
                f"the predictor was trained for the pair {pair.target} and {pair.draft}, not for {target.model_id} and "
                f"{engine.model_id}: the {what} should be {expected}, not {found}; make one with wisp trace and wisp train"
            )


def _predicted(terms: StopTerms) -> StopRule:
    if terms.trained is None:
        raise ConfigError("the stop rule predicted needs a predictor (--predictor); entropy and price do without one")
    threshold = terms.trained.threshold if terms.threshold is None else terms.threshold
    return PredictedRejection(terms.trained.predictor, threshold, terms.max_tokens)


def _price(terms: StopTerms) -> StopRule:
    return PriceAware(terms.max_tokens, None if terms.trained is None else terms.trained.predictor)


def _or(threshold: float | None, otherwise: float) -> float:
    return otherwise if threshold is None else threshold


_RULES: Mapping[str, Callable[[StopTerms], StopRule]] = {
    "fixed": lambda terms: FixedLength(terms.max_tokens),
    "confidence": lambda terms: ConfidenceThreshold(_or(terms.threshold, CONFIDENCE_THRESHOLD), terms.max_tokens),
    "predicted": _predicted,
    "entropy": lambda terms: EntropyRule(terms.max_tokens, _or(terms.threshold, ENTROPY_THRESHOLD)),
    "price": _price,
}
