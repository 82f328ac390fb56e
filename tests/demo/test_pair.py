"""The predictor that ships with the demo pair."""

from __future__ import annotations

import pytest

from wisp.config import ModelConfig, ServerConfig
from wisp.demo.app import DemoConfig
from wisp.demo.pair import DRAFT, PREDICTOR, TARGET
from wisp.edge.stop_rules import check_predictor
from wisp.edge.target import target_info
from wisp.engines.drafter import TransformersDrafter
from wisp.engines.target import TransformersTarget
from wisp.errors import ConfigError
from wisp.formats.predictor import TrainedPredictor
from wisp.server.hello import server_hello
from wisp.types import DraftStats


def test_it_fits_the_pair_that_ships() -> None:
    """Vocabulary and weights of both models are those that it was trained for, under whatever name they are served."""
    target = TransformersTarget.load(str(TARGET))
    hello = server_hello(target.card, ServerConfig(ModelConfig(str(TARGET))), 1024)
    hello.model_id = "another name"
    check_predictor(TrainedPredictor.load(PREDICTOR), TransformersDrafter.load(str(DRAFT)), target_info(hello))


def test_it_knows_good_drafts_from_bad_ones() -> None:
    """Greedy and sampled: a drafter that is sure, and one that is not."""
    predictor = TrainedPredictor.load(PREDICTOR).predictor
    for lead in (None, 4.0):
        assert predictor(DraftStats(0.99, 0.05, 6.0, 2.5, 0.99, lead), 0, 0.7) > 0.9
    for lead in (None, 0.02):
        assert predictor(DraftStats(0.1, 4.5, 0.1, 2.0, 0.03, lead), 0, 0.7) < 0.6


def test_the_demo_knows_its_stop_rules() -> None:
    """Another one is refused before anything starts."""
    with pytest.raises(ConfigError, match="fixed, confidence"):
        DemoConfig(stop_rule="clairvoyant")
