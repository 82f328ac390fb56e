"""What is reported of the points: summary, table, HTML."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from tests.bench.test_measures import BATCH_TIME, DRIVER, WINDOW
from wisp.bench.live.html import html_report
from wisp.bench.live.measures import Measures, measure
from wisp.bench.live.presets import BenchOptions, settings_of
from wisp.bench.live.results import Point, Results
from wisp.bench.live.settings import BenchSettings
from wisp.bench.live.summary import CellSummary, summarise
from wisp.bench.live.table import print_table

EMPTY = replace(measure([], [], WINDOW, DRIVER, BATCH_TIME), num_sessions=100)
VOID = {"area", "br", "hr", "img", "input", "link", "meta"}


def _settings(engine: str = "real") -> BenchSettings:
    return settings_of(BenchOptions(engine=engine, systems=["centralized", "fixed"], seeds=2))


def _measures(attainment: float, goodput: float = 10.0) -> Measures:
    return replace(EMPTY, attainment=attainment, goodput=goodput)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two systems, two seeds: both pass with 16 devices; centralized fails with 32, fixed is not tried there."""
    found = Results(tmp_path / "points.jsonl", {})
    for seed in (0, 1):
        found.add(Point("base", "centralized", seed, 16, _measures(1.0)))
        found.add(Point("base", "fixed", seed, 16, _measures(0.98, 20.0)))
        found.add(Point("base", "centralized", seed, 32, _measures(0.9 - 0.05 * seed, 30.0)))
    return found


def _cell(results: Results, engine: str = "real") -> CellSummary:
    (cell,) = summarise(_settings(engine), results)
    return cell


def test_capacity_is_a_mean_over_the_seeds_with_its_bounds(results: Results) -> None:
    """24 for one seed, 21.3 for the other; nobody failed under the other system."""
    centralized, fixed = _cell(results).systems
    assert centralized.capacity.mean == pytest.approx((24 + 16 + 16 / 3) / 2)
    assert (centralized.at_least, centralized.resolution) == (False, 8.0)
    assert (fixed.capacity.mean, fixed.at_least, fixed.resolution) == (16.0, True, None)


def test_systems_are_compared_under_the_largest_load_that_all_had(results: Results) -> None:
    """The highest goodput is of any."""
    cell = _cell(results)
    centralized, fixed = cell.systems
    assert cell.common_devices == 16
    assert [one.at_common(lambda m: m.goodput) for one in cell.systems] == [10.0, 20.0]
    assert (centralized.peak_goodput, fixed.peak_goodput) == (30.0, 20.0)


def test_a_cell_in_which_a_system_has_no_point_is_left_out(tmp_path: Path) -> None:
    """There is nothing to compare."""
    found = Results(tmp_path / "few.jsonl", {})
    found.add(Point("base", "centralized", 0, 16, EMPTY))
    assert summarise(_settings(), found) == []


@pytest.mark.parametrize(
    ("change", "engine", "note"),
    [
        (
            {"driver_lag_p95": 0.02},
            "real",
            "the driver was late by more than 10 ms (p95), devices slower than set: fixed at 64",
        ),
        (
            {"batch_time_ratio": 1.2},
            "timed",
            "emulated batches took over 1.1 times as long as they should: fixed at 64",
        ),
        (
            {"failures": {"EngineError": 2, "ServerBusy": 1}},
            "real",
            "sessions failed with EngineError; they count as missed",
        ),
        ({"num_sessions": 19}, "real", "fewer than 20 sessions judged, take a longer --duration: fixed at 64"),
        ({"num_diverged": 3}, "real", "3 sessions left their recording"),
    ],
)
def test_what_speaks_against_a_point_is_noted(
    results: Results, change: dict[str, object], engine: str, note: str
) -> None:
    """A real target may take other times than estimated: only an emulated one may not."""
    assert _cell(results).notes == ()
    results.add(Point("base", "fixed", 0, 64, replace(EMPTY, **change)))  # type: ignore[arg-type]
    (found,) = _cell(results, engine).notes
    assert found.startswith(note)


def test_the_summary_is_json(results: Results) -> None:
    """Per system, capacity and goodput."""
    content = json.loads(json.dumps(_cell(results).as_json(), allow_nan=False))
    assert content["systems"]["fixed"]["capacity"] == 16.0
    assert content["systems"]["fixed"]["goodput"] == 20.0


def test_the_table_says_what_is_emulated(results: Results) -> None:
    """In its title."""
    for engine, label in (("real", "real target; drafts replayed"), ("timed", "verdicts replayed, timing emulated")):
        console = Console(file=StringIO(), width=120)
        print_table(_settings(engine), [_cell(results, engine)], console)
        assert label in console.file.getvalue()  # type: ignore[attr-defined]
        assert "at least 16" in console.file.getvalue()  # type: ignore[attr-defined]


class _Outline(HTMLParser):
    """Checks that elements are closed in order; notes what is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.references: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(results: Results) -> str:
    return html_report(_settings("timed"), [_cell(results, "timed")], {"CPUs": 2, "other": "<&>"})


def test_the_page_is_well_formed_and_needs_nothing_else(page: str) -> None:
    """No script, no link, no image, no style from elsewhere."""
    outline = _Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.references == []
    assert not {"script", "link", "img", "iframe"} & set(outline.names)
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_says_what_is_emulated_and_escapes_what_it_quotes(page: str) -> None:
    """As the table does."""
    assert "verdicts replayed, timing emulated" in page
    assert "&lt;&amp;&gt;" in page


def test_every_chart_shows_every_system_inside_its_frame(page: str) -> None:
    """A line and its points each."""
    charts = [ET.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(charts) == 4
    for chart in charts:
        width, height = map(float, chart.attrib["viewBox"].split()[2:])
        circles = chart.findall("circle")
        assert len(chart.findall("polyline")) == 2
        assert len(circles) == 3
        assert all(0.0 < float(one.attrib["cx"]) < width for one in circles)
        assert all(0.0 < float(one.attrib["cy"]) < height for one in circles)
