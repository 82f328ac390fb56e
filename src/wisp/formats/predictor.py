"""Predictor files: a calibrated network, the pair of models it was trained for, and what it was measured to be worth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from wisp.errors import FormatError
from wisp.formats.trace import PairIdentity
from wisp.policy.predictor import FEATURES, FloatArray, MlpPredictor

FORMAT = "wisp-predictor"
VERSION = 2
_DIGITS = 7


@dataclass(frozen=True, slots=True, eq=False)
class TrainedPredictor:
    """A predictor and what belongs to it."""

    pair: PairIdentity
    conditions: tuple[str, ...]
    """How tokens were chosen in the traces that it was trained on (TraceHeader.condition)."""
    predictor: MlpPredictor
    threshold: float
    """Below which predicted rejection stops; tuned on prompts that the network was not fitted to."""
    report: dict[str, Any] = field(default_factory=dict)
    """What `wisp train` measured."""

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        network = self.predictor
        content = {
            "format": FORMAT,
            "version": VERSION,
            "pair": asdict(self.pair),
            "conditions": self.conditions,
            "threshold": self.threshold,
            "features": network.features,
            "mean": _listed(network.mean),
            "scale": _listed(network.scale),
            "layers": [{"weights": _listed(w), "bias": _listed(b)} for w, b in network.layers],
            "slope": network.slope,
            "offset": network.offset,
            "persistence": network.persistence,
            "report": self.report,
        }
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TrainedPredictor:
        """Read what `save` wrote. Raises FormatError."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(f"cannot read the predictor {path}: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise FormatError(f"{path} is not a {FORMAT}: make one with `wisp train`")
        if content.get("version") != VERSION:
            raise FormatError(
                f"{path} is a {FORMAT} of version {content.get('version')!r}, this WISP reads version {VERSION}: make it "
                "anew with `wisp train`"
            )
        try:
            return cls(
                pair=PairIdentity(**content["pair"]),
                conditions=tuple(map(str, content["conditions"])),
                predictor=_network(content),
                threshold=_finite(content["threshold"]),
                report=dict(content["report"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} is not a usable predictor: {error!r}") from error


def _network(content: dict[str, Any]) -> MlpPredictor:
    features = tuple(map(str, content["features"]))
    if unknown := [name for name in features if name not in FEATURES]:
        raise ValueError(f"unknown features {', '.join(unknown)}")
    layers = tuple((_array(layer["weights"]), _array(layer["bias"])) for layer in content["layers"])
    _check_shapes(len(features), _array(content["mean"]), _array(content["scale"]), layers)
    calibration = (_finite(content[name]) for name in ("slope", "offset", "persistence"))
    return MlpPredictor(features, _array(content["mean"]), _array(content["scale"]), layers, *calibration)


def _check_shapes(
    width: int, mean: FloatArray, scale: FloatArray, layers: tuple[tuple[FloatArray, FloatArray], ...]
) -> None:
    if mean.shape != (width,) or scale.shape != (width,) or not (scale > 0.0).all():
        raise ValueError(f"mean and scale should have {width} values, scale positive ones")
    for weights, bias in layers:
        if weights.ndim != 2 or weights.shape[0] != width or bias.shape != (weights.shape[1],):
            raise ValueError(f"a layer of shape {weights.shape} cannot follow {width} values")
        width = weights.shape[1]
    if not layers or width != 1:
        raise ValueError("the last layer should have one output")


def _finite(value: Any) -> float:
    if not isfinite(value):
        raise ValueError("a figure is not finite")
    return float(value)


def _array(values: Any) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a weight is not finite")
    return array


def _listed(array: FloatArray) -> Any:
    if array.ndim > 1:
        return [_listed(row) for row in array]
    return [float(f"{value:.{_DIGITS}g}") for value in array]
