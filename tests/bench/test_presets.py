"""From options to settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.traces import records
from wisp.bench.live.inputs import behind_contexts
from wisp.bench.live.point import Timing
from wisp.bench.live.presets import BenchOptions, minutes_of, settings_of
from wisp.bench.live.settings import Cell
from wisp.bench.live.sizing import first_size
from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchTimeModel

SOME = Path("some")


def test_quick_compares_five_systems_within_five_minutes() -> None:
    """With the real target."""
    settings = settings_of(BenchOptions("quick"))
    assert (len(settings.systems), settings.engine, len(settings.cells)) == (5, "real", 1)
    assert (minutes_of(BenchOptions("quick")) or 9.0) < 5.0


@pytest.mark.parametrize("engine", ["real", "timed"])
def test_the_cells_are_four_for_six_systems_within_an_hour(engine: str) -> None:
    """Short and long context, slow and fast drafters."""
    settings = settings_of(BenchOptions("cells", engine))
    assert (len(settings.systems), len({cell.name for cell in settings.cells})) == (6, 4)
    assert len({(cell.context_tokens, cell.fleet.draft_speed.low) for cell in settings.cells}) == 4
    assert (minutes_of(BenchOptions("cells", engine)) or 99.0) < 60.0


def test_what_is_said_goes_before_the_preset() -> None:
    """Each option for itself."""
    options = BenchOptions(
        "quick", systems=["fixed"], draft_speed="5", rtt_ms="10-20", duration=2.0, points=1, minutes=1.5
    )
    settings = settings_of(options)
    (cell,) = settings.cells
    assert (settings.systems, settings.timing.duration, settings.search.max_points) == (("fixed",), 2.0, 1)
    assert (cell.fleet.draft_speed.high, cell.fleet.rtt.low, minutes_of(options)) == (5.0, 0.01, 1.5)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (BenchOptions("other"), "unknown preset 'other'"),
        (BenchOptions(engine="other"), "the engine is real or timed"),
        (BenchOptions(systems=["other"]), "unknown system 'other'"),
        (BenchOptions(systems=["fixed", "fixed"]), "named once"),
        (BenchOptions(target=SOME), "go together"),
        (BenchOptions(target=SOME, draft=SOME, systems=["wisp"]), "wisp: the stop rule needs a predictor"),
        (BenchOptions(engine="timed", systems=["centralized-draft"]), "no drafter beside it"),
        (BenchOptions(engine="timed", real_drafts=True), "takes no real drafts"),
        (BenchOptions("cells", draft_speed="5"), "leave yours out"),
        (BenchOptions("cells", context_tokens=64), "leave yours out"),
        (BenchOptions(context_tokens=64, workload=SOME), "leave contexts out"),
        (BenchOptions(draft_speed="fast"), "LOW-HIGH"),
        (BenchOptions(duration=0.0), "must be positive"),
        (BenchOptions(devices=0), "the first fleet"),
        (BenchOptions(seeds=-1), "at least one seed"),
        (BenchOptions(slo_classes=["fast"]), "NAME="),
    ],
)
def test_options_that_cannot_be_are_refused(options: BenchOptions, complaint: str) -> None:
    """With what to change."""
    with pytest.raises(ConfigError, match=complaint):
        settings_of(options)


def test_a_time_limit_is_positive() -> None:
    """Or there is none."""
    with pytest.raises(ConfigError, match="time limit"):
        minutes_of(BenchOptions(minutes=0.0))


def test_slower_batches_begin_with_smaller_fleets() -> None:
    """The first fleet is a share of what the batch times promise."""
    settings = settings_of(BenchOptions())
    sizes = [
        first_size(settings, settings.cells[0], records(), BatchTimeModel(0.005, per_token).predict)
        for per_token in (0.0005, 0.001, 0.002, 1.0)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[2]
    assert sizes[-1] == 1


def test_fleets_that_have_contexts_to_read_start_more_slowly() -> None:
    """Over twice the time that reading takes, with the usual warm-up behind it."""
    timing = Timing(3.0, 8.0, 10.0).with_reading(6.0)
    assert (timing.warmup, timing.settling, timing.longest) == (15.0, 3.0, 33.0)


def test_a_long_context_is_read_once_for_several_questions() -> None:
    """So the first fleet is larger than where each question brings its own."""
    settings = settings_of(BenchOptions("cells"))
    fleet, slow = settings.cells[0].fleet, BatchTimeModel(0.005, 2e-4).predict
    shared = Cell("shared", fleet, context_tokens=1024)
    found = behind_contexts(records(24), 1024)
    assert first_size(settings, shared, found, slow) > first_size(settings, Cell("own", fleet), found, slow)
