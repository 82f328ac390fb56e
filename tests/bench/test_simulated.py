"""The points of a comparison, simulated."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.test_measures import BATCH_TIME, DRIVER, WINDOW
from tests.bench.traces import demo_header, records, save_times
from wisp.bench.live.html import html_report
from wisp.bench.live.inputs import CellInputs
from wisp.bench.live.measures import Percentiles, measure
from wisp.bench.live.presets import BenchOptions, settings_of
from wisp.bench.live.results import Point, Results
from wisp.bench.live.simulated import (
    Figures,
    SideBySide,
    check_simulable,
    print_side_by_side,
    scenario_of,
    side_by_side,
)
from wisp.bench.live.summary import CellSummary, summarise
from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape
from wisp.sim.scenario import Scenario

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
    slow = replace(scenario, batch_time=lambda shape: 0.02 * shape.num_requests, warmup=2.0, duration=5.0)
    found = side_by_side(SETTINGS, cell, slow)
    assert [one.system for one in found] == ["centralized", "fixed"]
    assert found[0].live == Figures(4.0, 20.0, 0.2)
    assert 1.0 <= found[0].simulated.capacity <= 8.0
    assert 0.0 < found[0].simulated.goodput < 4 * 12.0


def test_without_a_common_load_there_is_nothing_to_compare(cell: CellSummary, scenario: Scenario) -> None:
    """Since each would be another fleet."""
    assert side_by_side(SETTINGS, replace(cell, common_devices=0), scenario) == []


def test_ratios_are_simulated_over_live(cell: CellSummary) -> None:
    """In the table and on the page, too."""
    one = SideBySide("fixed", Figures(100.0, 800.0, 0.2), Figures(110.0, 600.0, 0.3))
    assert one.ratios == Figures(pytest.approx(1.1), pytest.approx(0.75), pytest.approx(1.5))
    console = Console(file=StringIO(), width=100)
    print_side_by_side(cell, [one], console)
    assert "100, 110 (1.10)" in console.file.getvalue()  # type: ignore[attr-defined]
    page = html_report(SETTINGS, [cell], {}, {"base": [one]})
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
