"""Predictor files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.policy.test_predictor import STATS, predictor
from tests.training.traces import PAIR
from wisp.errors import FormatError
from wisp.formats.predictor import TrainedPredictor

TRAINED = TrainedPredictor(PAIR, ("greedy",), predictor(1.5, -0.25), threshold=0.4, report={"auc": 0.8})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """The network predicts the same, and the file says for whom."""
    TRAINED.save(tmp_path / "p.json")
    found = TrainedPredictor.load(tmp_path / "p.json")
    assert (found.pair, found.conditions, found.threshold, found.report) == (PAIR, ("greedy",), 0.4, {"auc": 0.8})
    assert found.predictor(STATS, 2, 0.5) == pytest.approx(TRAINED.predictor(STATS, 2, 0.5))


def changed(path: Path, change: dict[str, Any]) -> None:
    TRAINED.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "other"}, "is not a wisp-predictor"),
        ({"version": 1}, r"of version 1, this WISP reads version 2.*anew with `wisp train`"),
        ({"threshold": float("nan")}, "not finite"),
        ({"slope": float("inf")}, "not finite"),
        ({"report": 3}, "not a usable predictor"),
        ({"conditions": None}, "not a usable predictor"),
        ({"features": 3}, "not a usable predictor"),
        ({"layers": [[1.0]]}, "not a usable predictor"),
        ({"mean": [[0.0], [1.0, 2.0]]}, "not a usable predictor"),
        ({"features": ["margin", "shoe_size"]}, "shoe_size"),
        ({"mean": [0.0]}, "2 values"),
        ({"scale": [1.0, 0.0]}, "2 values"),
        ({"slope": None}, "not a usable predictor"),
        ({"pair": {}}, "not a usable predictor"),
        ({"layers": []}, "one output"),
        ({"layers": [{"weights": [[1.0], [1.0], [1.0]], "bias": [0.0]}]}, "cannot follow"),
        ({"layers": [{"weights": [[1.0], [float("nan")]], "bias": [0.0]}]}, "not finite"),
    ],
)
def test_what_is_no_predictor_is_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    """The message says what is wrong."""
    changed(tmp_path / "p.json", change)
    with pytest.raises(FormatError, match=complaint):
        TrainedPredictor.load(tmp_path / "p.json")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Neither a missing file nor garbage is a traceback."""
    with pytest.raises(FormatError, match="cannot read"):
        TrainedPredictor.load(tmp_path / "missing.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(FormatError, match="is not a wisp-predictor: make one"):
        TrainedPredictor.load(tmp_path / "list.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="cannot read"):
        TrainedPredictor.load(tmp_path / "binary.json")
    (tmp_path / "garbage.json").write_text("{")
    with pytest.raises(FormatError, match="cannot read"):
        TrainedPredictor.load(tmp_path / "garbage.json")
    assert np.isfinite(TRAINED.predictor.mean).all()
