"""The points of a comparison, simulated."""

from __future__ import annotations

from dataclasses import astuple, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.test_measures import BATCH_TIME, DRIVER, WINDOW
from tests.bench.traces import demo_header, records, save_times
from wisp.bench.live.html import html_report
from wisp.bench.live.inputs import CellInputs
from wisp.bench.live.measures import Percentiles, measure
from wisp.bench.live.point import Timing
from wisp.bench.live.presets import BenchOptions, settings_of
from wisp.bench.live.results import Point, Results
from wisp.bench.live.simulated import (
    SERVED_BEFORE,
    Figures,
    SideBySide,
    at_speed,
    check_simulable,
    print_side_by_side,
    ratios,
    scenario_of,
    side_by_side,
    timed,
)
from wisp.bench.live.summary import CellSummary, summarise
from wisp.calibration.overhead import ServerOverhead
from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.systems import System
from wisp.sim.report import Report
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import simulate

SETTINGS = settings_of(BenchOptions(systems=["centralized", "fixed"], draft_speed="50", rtt_ms="20"))
MEASURES = replace(
    measure([], [], WINDOW, DRIVER, BATCH_TIME),
    num_sessions=100,
    attainment=1.0,
    goodput=20.0,
    first_token_s=Percentiles(0.1, 0.2, 0.3),
)


@pytest.fixture
def cell(tmp_path: Path) -> CellSummary:
    """Both systems served four devices."""
    results = Results(tmp_path / "points.jsonl", {})
    for system in SETTINGS.systems:
        results.add(Point("base", system, 0, 4, MEASURES))
    (found,) = summarise(SETTINGS, results)
    return found


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    inputs = CellInputs(demo_header(), records(num_output=32), tmp_path / "unused")
    return scenario_of(SETTINGS, SETTINGS.cells[0], inputs, str(save_times(tmp_path / "times.json")), None)


def test_the_simulated_fleet_is_the_emulated_one(scenario: Scenario) -> None:
    """Its devices, classes, prompts and answers, on the hardware of the batch times."""
    fleet = SETTINGS.cells[0].fleet
    assert (scenario.fleet.draft_speed, scenario.fleet.rtt) == (fleet.draft_speed, fleet.rtt)
    assert (scenario.workload.slos, scenario.workload.think_time) == (SETTINGS.slos, fleet.think_time)
    assert [(one.num_prompt_tokens, one.num_output_tokens) for one in scenario.workload.lengths] == [
        (8, 32),
        (9, 32),
        (10, 32),
        (11, 32),
    ]
    assert scenario.batch_time(BatchShape.of_members([(1, 10)])) == pytest.approx(0.004)
    assert (scenario.overhead, scenario.attempts) == (None, 1)


def test_every_system_stands_beside_its_simulation(cell: CellSummary, scenario: Scenario) -> None:
    """Under the load that all had, and by its own search."""
    slow = replace(scenario, batch_time=lambda shape: 0.025 * shape.num_requests)
    found = side_by_side(SETTINGS, cell, slow)
    assert [one.system for one in found] == ["centralized", "fixed"]
    assert found[0].live == Figures(4.0, 20.0, 0.2)
    assert 1.0 <= found[0].simulated.capacity <= 8.0
    assert 0.0 < found[0].simulated.goodput < 4 * 12.0


def test_a_point_is_simulated_with_the_times_of_a_live_one(scenario: Scenario) -> None:
    """All devices begin within the warm-up, small fleets are judged longer, and what is under way counts."""
    timing = Timing(warmup=3.0, duration=5.0, drain=10.0)
    small, large = (timed(scenario, timing, size) for size in (12, 100))
    assert (small.num_devices, small.warmup, small.ramp, small.duration, small.drain) == (12, 3.0, 3.0, 10.0, 10.0)
    assert (large.num_devices, large.duration) == (100, 5.0)
    assert small.judges_under_way


def test_batches_that_lasted_longer_are_simulated_so(scenario: Scenario) -> None:
    """What the server adds to a batch is in them already; what passes after one is not."""
    shape = BatchShape.of_members([(1, 10)])
    within, after = BatchTimeModel(fixed_s=0.5), BatchTimeModel(fixed_s=0.25)
    slower = at_speed(replace(scenario, overhead=ServerOverhead(within, after)), 1.5)
    assert slower.batch_time(shape) == pytest.approx(1.5 * scenario.batch_time(shape))
    assert slower.overhead is not None
    assert slower.overhead.on(slower.batch_time)(shape) == slower.batch_time(shape)
    assert slower.overhead.after == after
    assert at_speed(scenario, 1.5).overhead is None


def test_the_speed_of_the_run_has_figures_of_its_own(cell: CellSummary, scenario: Scenario, tmp_path: Path) -> None:
    """A machine that was slower than it was calibrated serves no more; the median of its points is told."""
    results = Results(tmp_path / "of-run.jsonl", {})
    for system in SETTINGS.systems:
        for size, ratio in ((4, 8.0), (6, 2.0), (9, 4.0)):
            results.add(Point("base", system, 0, size, replace(MEASURES, batch_time_ratio=ratio)))
    (of_run,) = summarise(SETTINGS, results)
    slow = replace(scenario, batch_time=lambda shape: 0.02 * shape.num_requests)
    one, _ = side_by_side(SETTINGS, of_run, slow)
    assert one.speed == 4.0
    assert one.at_run_speed is not None
    assert one.at_run_speed.capacity < one.simulated.capacity
    assert one.as_json()["batch_time_ratio"] == 4.0


def test_only_with_the_first_fleet_servers_have_served_nobody(
    cell: CellSummary, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live ones stay up from one fleet to the next."""
    seen: dict[int, set[int]] = {}

    def simulated(point: Scenario, system: System, seed: int) -> Report:
        seen.setdefault(point.num_devices, set()).add(point.num_served_before)
        return simulate(point, system, seed)

    monkeypatch.setattr("wisp.bench.live.simulated.simulate", simulated)
    side_by_side(SETTINGS, cell, replace(scenario, batch_time=lambda shape: 0.02 * shape.num_requests))
    assert cell.first_devices == 4
    assert seen.pop(4) == {0}
    assert set.union(*seen.values()) == {SERVED_BEFORE}


def test_without_a_common_load_there_is_nothing_to_compare(cell: CellSummary, scenario: Scenario) -> None:
    """Since each would be another fleet."""
    assert side_by_side(SETTINGS, replace(cell, common_devices=0), scenario) == []


def test_ratios_are_simulated_over_live() -> None:
    """Of each figure."""
    found = ratios(Figures(100.0, 800.0, 0.2), Figures(110.0, 600.0, 0.3))
    assert astuple(found) == pytest.approx((1.1, 0.75, 1.5))


def test_a_table_for_calibrated_batch_times_and_one_for_those_of_the_run(cell: CellSummary) -> None:
    """On the terminal and on the page."""
    one = SideBySide("fixed", Figures(100.0, 800.0, 0.2), Figures(110.0, 600.0, 0.3), Figures(90.0, 640.0, 0.25), 1.2)
    console = Console(file=StringIO(), width=100)
    print_side_by_side(cell, [one], console)
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "100, 110 (1.10)" in text
    assert "100, 90 (0.90)" in text
    assert "1.20 times what was calibrated" in text
    page = html_report(SETTINGS, [cell], {}, {"base": [one]})
    assert "<td>200, 250 (1.25)</td>" in page
    assert "The same, simulated" in page
    assert "<td>200, 300 (1.50)</td>" in page
    assert "The same, simulated" not in html_report(SETTINGS, [cell], {})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (BenchOptions(context_tokens=64), "shares no prefixes"),
        (BenchOptions(systems=["centralized-draft"]), "not measured"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options: BenchOptions, complaint: str) -> None:
    """Before anything is measured."""
    with pytest.raises(ConfigError, match=complaint):
        check_simulable(settings_of(options))
