"""Calibrating finds the coefficients of an engine whose times are known, within its time, and leaves nothing behind."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import FakeTarget, fake_card
from wisp.calibration.app import CalibrateConfig, calibrate, run_calibrate
from wisp.calibration.fit import fit, fit_all
from wisp.calibration.plot import svg
from wisp.calibration.report import by_region, wall_over_cpu
from wisp.calibration.sessions import SweepSessions
from wisp.calibration.sweep import Clocks, Sweep, SweepSettings
from wisp.config import ModelConfig
from wisp.engines.base import StepMember
from wisp.engines.target import TransformersTarget
from wisp.engines.timed import RecordedOutputs, TimedTarget
from wisp.errors import FormatError
from wisp.formats.calibration import BatchSample, Calibration
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.types import GenerationRequest, SessionId

TRUTH = BatchTimeModel(0.02, 1e-4, 4e-4, 1e-7, 2e-6, 3e-4, ridge_tokens=64.0)
SETTINGS = SweepSettings(
    time_budget=100.0, num_shapes=60, repeats=3, max_requests=12, max_cached_tokens=300, max_chunk_tokens=64
)


class Apart(FakeTarget):
    """Finds no prefixes of other sessions."""

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        return super().open(session_id, f"{owner} of {session_id}", request)


def longest_step(samples: Sequence[BatchSample]) -> float:
    return max(time for sample in samples for time in sample.times)


class Clocked:
    """A fake target on a clock of its own: a step takes what TRUTH says, times some noise."""

    def __init__(
        self, truth: BatchTimeModel = TRUTH, noise: float = 0.03, target: type[FakeTarget] = FakeTarget
    ) -> None:
        self.now = self.cpu = 0.0
        self.disturbance = 1.0
        """By how much wall times exceed processor times."""
        self._truth, self._noise = truth, noise
        self._rng = np.random.default_rng(1)
        card = replace(fake_card(), dtype="float32", device="cpu")
        self.target = target(card=card, on_step=self._pass_time)

    def _pass_time(self, members: Sequence[StepMember]) -> None:
        sizes = [
            (member.num_prefill_tokens + (0 if member.draft is None else 1 + len(member.draft)), self._cached(member))
            for member in members
        ]
        noise = 1.0 + self._noise * abs(self._rng.standard_normal())
        cpu = self._truth.predict(BatchShape.of_members(sizes)) * noise
        self.cpu += cpu
        self.now += cpu * self.disturbance

    def clocks(self) -> Clocks:
        return Clocks(lambda: self.now)

    def samples(self, settings: SweepSettings = SETTINGS) -> list[BatchSample]:
        return Sweep(self.target, settings, self.clocks(), lambda _: None).run()

    def _cached(self, member: StepMember) -> int:
        return self.target.num_cached_tokens(member.session_id)


def test_the_coefficients_of_a_known_engine_are_found() -> None:
    """Within what the noise allows; the error is measured on shapes that were not fitted."""
    engine = Clocked()
    shares: list[float] = []
    found = calibrate(engine.target, SETTINGS, engine.clocks(), shares.append)
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
    samples = engine.samples()
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
    engine.samples()
    assert engine.target.open_sessions == set()

    def fail(_: object) -> None:
        raise RuntimeError

    engine.target.on_step = fail
    with pytest.raises(RuntimeError):
        engine.samples()
    assert engine.target.open_sessions == set()


@pytest.mark.parametrize("budget", [3.0, 8.0])
def test_a_slow_engine_is_measured_less_not_longer(budget: float) -> None:
    """The time is kept, whatever has to be left out; each shape that is kept has as many times as the others."""
    engine = Clocked(replace(TRUTH, fixed_s=0.05))
    samples = engine.samples(replace(SETTINGS, time_budget=budget))
    assert 0 < len(samples) < SETTINGS.num_shapes
    assert len({len(sample.times) for sample in samples}) == 1
    assert engine.now < budget + longest_step(samples)


def test_chunks_are_as_long_as_the_engine_is_fast() -> None:
    """A step cannot be interrupted, so none is begun that takes a large share of the time."""
    engine = Clocked(replace(TRUTH, per_token_s=0.01))
    samples = engine.samples(replace(SETTINGS, time_budget=20.0, max_chunk_tokens=512))
    assert max(new for sample in samples for new, _ in sample.members) < 128
    assert engine.now < 20.0 + longest_step(samples) < 24.0


def test_a_small_cache_is_not_overfilled() -> None:
    """Sessions that do not fit half of it are not opened."""
    engine = Clocked()
    engine.target.kv_capacity_tokens = 1000
    samples = engine.samples()
    assert max(len(sample.members) for sample in samples) < SETTINGS.max_requests


def test_too_few_shapes_are_refused() -> None:
    """A fit to a handful of batches would be believed."""
    with pytest.raises(FormatError, match="15 batch shapes are too few"):
        fit([BatchSample(((1, 1),), (1.0,))] * 15)


def test_an_engine_without_a_ridge_gets_none() -> None:
    """A hinge that gains nothing is left out."""
    engine = Clocked(replace(TRUTH, per_token_above_ridge_s=0.0), noise=0.01)
    found = calibrate(engine.target, SETTINGS, engine.clocks())
    assert found.model.per_token_above_ridge_s == 0.0


def test_the_fit_has_the_form_of_an_undisturbed_machine_at_the_level_of_the_medians() -> None:
    """A spell of other work during some repeats of some shapes does not say what a batch's time depends on."""
    quiet = [replace(one, times=one.times[:1]) for one in Clocked().samples()]
    disturbed = [
        replace(one, times=(3.0 * one.time, one.time, (2.0 if index % 2 else 1.5) * one.time))
        for index, one in enumerate(quiet)
    ]
    ratios = [fit_all(disturbed).predict(one.shape) / fit_all(quiet).predict(one.shape) for one in quiet]
    assert max(ratios) == pytest.approx(min(ratios))
    assert 1.5 <= ratios[0] <= 2.0


@pytest.mark.parametrize("few", [3.0, 6.0])
def test_it_is_found_how_many_positions_are_few(few: float) -> None:
    """Kernels for few rows are not the same on all machines."""
    engine = Clocked(replace(TRUTH, per_batch_of_several_s=0.02, few_tokens=few), noise=0.01)
    assert fit_all(engine.samples()).few_tokens == few


def test_one_batch_just_beyond_a_ridge_is_none() -> None:
    """Of 385 positions, where all others have up to 320, and a third slower than it should: noise, not seconds more at 600."""
    truth = BatchTimeModel(0.01, 2e-4)
    sizes = [*range(8, 328, 8), 385]
    shapes = [((num_new, 64),) for num_new in sizes]
    times = [truth.predict(BatchShape.of_members(members)) for members in shapes]
    times[-1] *= 4.0 / 3.0
    found = fit_all([BatchSample(members, (time,)) for members, time in zip(shapes, times, strict=True)])
    large = BatchShape.of_members([(600, 64)])
    assert found.predict(large) == pytest.approx(truth.predict(large), rel=0.35)


def test_processor_times_judge_the_formula_on_a_busy_machine() -> None:
    """Wall times of a machine with others on it say little; the processor times of the same batches do."""
    engine = Clocked(noise=0.01)
    rng = np.random.default_rng(0)
    on_step = engine.target.on_step

    def disturbed(members: Sequence[StepMember]) -> None:
        assert on_step is not None
        engine.disturbance = float(rng.uniform(1.0, 4.0))
        on_step(members)

    engine.target.on_step = disturbed
    found = calibrate(engine.target, SETTINGS, Clocks(lambda: engine.now, lambda: engine.cpu))
    assert found.held_out_cpu is not None
    assert found.repeats_cpu is not None
    assert found.held_out_cpu.mean < 0.03 < 0.2 < found.held_out.mean
    assert found.repeats_cpu.mean < 0.03 < 0.2 < found.repeats.mean
    assert 2.0 < (wall_over_cpu(found) or 0.0) < 3.0


def test_the_fit_is_to_processor_times_at_the_level_of_wall_times() -> None:
    """Other work that hits some shapes and not others does not say what a batch's time depends on."""
    rng = np.random.default_rng(0)
    quiet = [replace(one, times=one.times[:1]) for one in Clocked(noise=0.0).samples()]
    busy = [replace(one, times=(one.time * float(rng.uniform(1.0, 3.0)),), cpu_times=one.times) for one in quiet]
    ratios = [fit_all(busy).predict(one.shape) / fit_all(quiet).predict(one.shape) for one in quiet]
    assert max(ratios) == pytest.approx(min(ratios))
    assert 1.8 < ratios[0] < 2.2


def test_a_gpu_or_an_emulation_has_no_processor_times() -> None:
    """The thread that waits for them computes nothing."""
    target = FakeTarget(card=replace(fake_card(), device="cpu", emulated=False))
    assert Clocks.of(target).cpu is not None
    target.card = replace(target.card, device="NVIDIA H100")
    assert Clocks.of(target).cpu is None
    target.card = replace(target.card, device="cpu", emulated=True)
    assert Clocks.of(target).cpu is None


def test_the_longest_history_is_computed_once_and_copied() -> None:
    """An engine that finds cached prefixes spends the time on measuring, not on filling caches."""
    engine = Clocked()
    with SweepSessions(engine.target, np.random.default_rng(0), max_cached=300, max_chunk=64, max_new=9) as sessions:
        sessions.fill(12, lambda: engine.now, 100.0)
        assert len(sessions.all) == 12
        assert [engine.target.num_cached_tokens(one.id) for one in sessions.all] == [
            one.num_cached for one in sessions.all
        ]
        for _ in range(2):  # what a chunk left behind is dropped
            sessions.prepare(sessions.all[3], 8)
            engine.target.step([StepMember(sessions.all[3].id, 8)])
    assert sum(member.num_prefill_tokens for step in engine.target.steps for member in step) == 300 + 16


def test_an_engine_without_shared_prefixes_is_calibrated_too() -> None:
    """Each history is then computed, as far as the time allows."""
    engine = Clocked(target=Apart)
    samples = engine.samples(replace(SETTINGS, time_budget=12.0))
    assert engine.now < 12.0 + longest_step(samples)
    assert max(len(sample.members) for sample in samples) == SETTINGS.max_requests
    assert max(cached for sample in samples for _, cached in sample.members) == SETTINGS.max_cached_tokens


def test_a_handful_of_histories_is_refused() -> None:
    """Batches of one or two requests say nothing of what a batch of many takes."""
    engine = Clocked()
    engine.target.kv_capacity_tokens = 350
    with pytest.raises(FormatError, match="only 2 histories could be cached"):
        engine.samples()


def test_an_emulated_target_says_that_it_cannot_be_calibrated() -> None:
    """It knows recorded prompts only, and its batch times are given anyway."""
    target = TimedTarget(fake_card("m"), RecordedOutputs({}), TRUTH.predict, lambda _: None)
    with pytest.raises(FormatError, match="m cannot be calibrated, it is emulated: its batch times are those"):
        calibrate(target, SETTINGS)


def test_the_plot_shows_every_shape(tmp_path: Path) -> None:
    """As well-formed SVG, also when the name of a model is not."""
    engine = Clocked()
    found = replace(calibrate(engine.target, SETTINGS, engine.clocks()), model_id="<&>")
    root = ET.fromstring(svg(found))
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == SETTINGS.num_shapes


def test_regions_are_of_held_out_shapes() -> None:
    """Where the errors are is told of what was not fitted."""
    engine = Clocked()
    regions = by_region(calibrate(engine.target, SETTINGS, engine.clocks()))
    positions = [count for name, (count, _) in regions.items() if name.endswith(("positions", "positions and more"))]
    assert sum(positions) == SETTINGS.num_shapes // 2
    assert all(error.mean < 0.1 for _, error in regions.values())


@pytest.mark.parametrize("json_output", [True, False])
def test_the_command_writes_a_file_and_says_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, json_output: bool
) -> None:
    """As a table or as JSON."""
    engine = Clocked()
    monkeypatch.setattr(TransformersTarget, "load", lambda *_: engine.target)
    monkeypatch.setattr(Clocks, "of", lambda _: Clocks(lambda: engine.now, lambda: engine.cpu))
    path = tmp_path / "profile.json"
    config = CalibrateConfig(ModelConfig("fake"), path, SETTINGS, tmp_path / "plot.svg", json_output=json_output)
    assert run_calibrate(config) == 0
    output = capsys.readouterr().out
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
    assert Calibration.load(path).model_id == "fake-target"
    if json_output:
        told = json.loads(output)
        assert (told["profile"], told["shapes"], told["repeats"]) == (str(path), 60, 3)
        assert told["held_out"]["mean"] < 0.05
        assert told["wall_over_cpu"] == pytest.approx(1.0)
    else:
        assert "each position" in output
        assert "the floor" in output
        assert "4 to 31 positions" in output


def test_a_plot_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile is written all the same."""
    engine = Clocked()
    monkeypatch.setattr(TransformersTarget, "load", lambda *_: engine.target)
    monkeypatch.setattr(Clocks, "of", lambda _: engine.clocks())
    path = tmp_path / "profile.json"
    with pytest.raises(FormatError, match="cannot write the plot"):
        run_calibrate(CalibrateConfig(ModelConfig("fake"), path, SETTINGS, tmp_path / "no" / "plot.svg"))
    assert path.exists()
