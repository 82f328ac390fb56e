"""The stop rules that a device offers, and the predictor that some of them ask."""

from __future__ import annotations

from wisp.edge.target import TargetInfo
from wisp.engines.base import DraftEngine
from wisp.errors import FormatError
from wisp.formats.predictor import TrainedPredictor
from wisp.policy.controller import StopRule
from wisp.policy.stop_rules import StopTerms, make_stop_rule


def stop_rule(name: str, max_tokens: int, threshold: float | None, trained: TrainedPredictor | None) -> StopRule:
    """The rule called `name`; a trained predictor brings its own threshold. Raises ConfigError where one is missing."""
    if trained is None:
        return make_stop_rule(name, StopTerms(max_tokens, threshold))
    if name == "predicted" and threshold is None:
        threshold = trained.threshold
    return make_stop_rule(name, StopTerms(max_tokens, threshold, trained.predictor))


def check_predictor(trained: TrainedPredictor, engine: DraftEngine, target: TargetInfo) -> None:
    """Refuse a predictor of another pair of models. Raises FormatError.

    The target is known by its weights; where its server does not know them, by its name.
    """
    pair = trained.pair
    own = ("weights of the target", pair.target_weights, target.weights)
    for what, expected, found in (
        ("vocabulary", pair.vocabulary, target.vocabulary),
        own if target.weights else ("target", pair.target, target.model_id),
        ("weights of the drafter", pair.draft_weights, engine.weights),
    ):
        if expected != found:
            raise FormatError(
                f"the predictor was trained for the pair {pair.target} and {pair.draft}, not for {target.model_id} and "
                f"{engine.model_id}: the {what} should be {expected}, not {found}; make one with wisp trace and wisp train"
            )
