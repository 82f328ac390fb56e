"""Finished points on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from wisp.bench.live.measures import DriverLoad, Measures, Window, measure
from wisp.bench.live.results import Point, Results
from wisp.errors import FormatError

SETTINGS = {"systems": ["centralized"], "seed": 0}


def _measures() -> Measures:
    return measure([], [], Window(0.0, 1.0), DriverLoad(0.5, 0.0), None)


def _point(num_devices: int) -> Point:
    return Point("base", "centralized", 0, num_devices, _measures())


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """With all points that were finished, in their order."""
    path = tmp_path / "points.jsonl"
    first = Results(path, SETTINGS)
    first.add(_point(16))
    first.add(_point(8))
    again = Results(path, SETTINGS)
    assert again.points == [_point(16), _point(8)]
    assert again.of("base", "centralized", 0) == [_point(8), _point(16)]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    """And does not spoil what is added."""
    path = tmp_path / "points.jsonl"
    Results(path, SETTINGS).add(_point(16))
    path.write_text(path.read_text() + _point(8).line()[:40])
    Results(path, SETTINGS).add(_point(32))
    assert [point.num_devices for point in Results(path, SETTINGS).points] == [16, 32]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """By the names of those that differ."""
    path = tmp_path / "points.jsonl"
    Results(path, SETTINGS)
    with pytest.raises(FormatError, match=r"other settings \(seed\)"):
        Results(path, {**SETTINGS, "seed": 1})


@pytest.mark.parametrize("content", ["", "no JSON\n", '{"format": "other", "version": 1, "settings": {}}\n'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    """By name."""
    path = tmp_path / "points.jsonl"
    path.write_text(content)
    with pytest.raises(FormatError, match=r"points\.jsonl"):
        Results(path, SETTINGS)


def test_a_damaged_point_is_named(tmp_path: Path) -> None:
    """By its line."""
    path = tmp_path / "points.jsonl"
    Results(path, SETTINGS)
    path.write_text(path.read_text() + '{"cell": "base"}\n')
    with pytest.raises(FormatError, match="line 2"):
        Results(path, SETTINGS)
