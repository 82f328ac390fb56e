"""Calibrating finds the coefficients of an engine whose times are known, within its time, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import FakeTarget, fake_card
from wisp.calibration import app
from wisp.calibration.app import CalibrateConfig, calibrate, run_calibrate
from wisp.calibration.fit import fit
from wisp.calibration.sweep import Sweep, SweepSettings
from wisp.config import ModelConfig
from wisp.engines.base import StepMember
from wisp.engines.target import TransformersTarget
from wisp.errors import FormatError
from wisp.formats.calibration import BatchSample, Calibration
from wisp.policy.batch_time import BatchShape, BatchTimeModel

TRUTH = BatchTimeModel(0.02, 1e-4, 4e-4, 1e-7, 2e-6, 3e-4, ridge_tokens=64.0)
SETTINGS = SweepSettings(
    time_budget=100.0, num_shapes=60, repeats=3, max_requests=12, max_cached_tokens=300, max_chunk_tokens=64
)


class Clocked:
    """A fake target on a clock of its own: a step takes what TRUTH says, times some noise."""

    def __init__(self, truth: BatchTimeModel = TRUTH, noise: float = 0.03) -> None:
        self.now = 0.0
        self._truth, self._noise = truth, noise
        self._rng = np.random.default_rng(1)
        card = replace(fake_card(), dtype="float32", device="cpu")
        self.target = FakeTarget(card=card, on_step=self._pass_time)

    def _pass_time(self, members: Sequence[StepMember]) -> None:
        sizes = [
            (member.num_prefill_tokens + (0 if member.draft is None else 1 + len(member.draft)), self._cached(member))
            for member in members
        ]
        noise = 1.0 + self._noise * abs(self._rng.standard_normal())
        self.now += self._truth.predict(BatchShape.of_members(sizes)) * noise

    def _cached(self, member: StepMember) -> int:
        return self.target.num_cached_tokens(member.session_id)


def test_the_coefficients_of_a_known_engine_are_found() -> None:
    """Within what the noise allows; the error is measured on shapes that were not fitted."""
    engine = Clocked()
    shares: list[float] = []
    found = calibrate(engine.target, SETTINGS, lambda: engine.now, shares.append)
    assert (found.model_id, found.dtype, found.device, found.emulated) == ("fake-target", "float32", "cpu", True)
    assert len(found.samples) == SETTINGS.num_shapes
    assert {len(sample.times) for sample in found.samples} == {SETTINGS.repeats}
    assert found.held_out.mean < 0.04
    assert found.held_out.p95 < 0.1
    assert 0.0 < found.repeats.mean < 0.05
    for shape in (BatchShape(5, 500.0, 100, 1), BatchShape(300, 30000.0, 3000, 12)):
        assert found.model.predict(shape) == pytest.approx(TRUTH.predict(shape), rel=0.15)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_shapes_are_ragged_and_of_all_sizes() -> None:
    """One request and many, short and long contexts, with chunks of prompts between them."""
    engine = Clocked()
    samples = Sweep(engine.target, SETTINGS, lambda: engine.now, lambda _: None).run()
    sizes = {len(sample.members) for sample in samples}
    assert {1, SETTINGS.max_requests} <= sizes
    new, cached = zip(*[member for sample in samples for member in sample.members], strict=True)
    assert min(new) == 1
    assert max(new) > SETTINGS.max_new_tokens
    assert min(cached) == 16
    assert max(cached) == SETTINGS.max_cached_tokens


def test_nothing_is_left_in_the_engine_even_after_a_failure() -> None:
    """The server that follows starts with an empty engine."""
    engine = Clocked()
    Sweep(engine.target, SETTINGS, lambda: engine.now, lambda _: None).run()
    assert engine.target.open_sessions == set()

    def fail(_: object) -> None:
        raise RuntimeError

    engine.target.on_step = fail
    with pytest.raises(RuntimeError):
        Sweep(engine.target, SETTINGS, lambda: engine.now, lambda _: None).run()
    assert engine.target.open_sessions == set()


@pytest.mark.parametrize("budget", [3.0, 8.0])
def test_a_slow_engine_is_measured_less_not_longer(budget: float) -> None:
    """The time is kept, whatever has to be left out; each shape that is kept has as many times as the others."""
    engine = Clocked(replace(TRUTH, fixed_s=0.05))
    samples = Sweep(engine.target, replace(SETTINGS, time_budget=budget), lambda: engine.now, lambda _: None).run()
    assert 0 < len(samples) < SETTINGS.num_shapes
    assert len({len(sample.times) for sample in samples}) == 1
    assert engine.now < budget + 1.0


def test_a_small_cache_is_not_overfilled() -> None:
    """Sessions that do not fit half of it are not opened."""
    engine = Clocked()
    engine.target.kv_capacity_tokens = 1000
    samples = Sweep(engine.target, SETTINGS, lambda: engine.now, lambda _: None).run()
    assert max(len(sample.members) for sample in samples) < SETTINGS.max_requests


def test_too_few_shapes_are_refused() -> None:
    """A fit to a handful of batches would be believed."""
    with pytest.raises(FormatError, match="15 batch shapes are too few"):
        fit([BatchSample(((1, 1),), (1.0,))] * 15)


def test_an_engine_without_a_ridge_gets_none() -> None:
    """A hinge that gains nothing is left out."""
    engine = Clocked(replace(TRUTH, per_token_above_ridge_s=0.0), noise=0.01)
    found = calibrate(engine.target, SETTINGS, lambda: engine.now)
    assert found.model.per_token_above_ridge_s == 0.0


@pytest.mark.parametrize("json_output", [True, False])
def test_the_command_writes_a_file_and_says_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, json_output: bool
) -> None:
    """As a table or as JSON."""
    engine = Clocked()
    monkeypatch.setattr(TransformersTarget, "load", lambda *_: engine.target)
    monkeypatch.setattr(app.time, "perf_counter", lambda: engine.now)
    monkeypatch.setattr(calibrate, "__defaults__", (lambda: engine.now, lambda _: None))
    path = tmp_path / "profile.json"
    config = CalibrateConfig(ModelConfig("fake"), path, SETTINGS, json_output=json_output)
    assert run_calibrate(config) == 0
    output = capsys.readouterr().out
    assert Calibration.load(path).model_id == "fake-target"
    if json_output:
        told = json.loads(output)
        assert (told["profile"], told["shapes"], told["repeats"]) == (str(path), 60, 3)
        assert told["held_out"]["mean"] < 0.05
    else:
        assert "each position" in output
        assert "the floor" in output
