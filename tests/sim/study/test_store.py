"""Finished points on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from wisp.errors import FormatError
from wisp.sim.study.model import Point
from wisp.sim.study.store import PointStore

POINT = Point("cell", "system", 0, 7, {"capacity": {"goodput": 1.5}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one point."""
    path = tmp_path / "new" / "points.jsonl"
    PointStore(path).add("key", POINT)
    return path


def test_points_are_found_again(path: Path) -> None:
    """By fingerprint, as they were."""
    store = PointStore(path)
    assert store.find("key") == POINT
    assert store.find("other") is None


def test_a_line_that_was_cut_off_is_dropped(path: Path) -> None:
    """And what is added after it is whole."""
    with path.open("a") as file:
        file.write('{"key": "half')
    PointStore(path).add("second", POINT)
    store = PointStore(path)
    assert store.find("second") == store.find("key") == POINT


def test_a_spoilt_line_is_named(path: Path) -> None:
    """With what to do about it."""
    path.write_text(path.read_text() + '{"key": "x", "cell": "only"}\n')
    with pytest.raises(FormatError, match=r"line 3 is not a point.*remove the line"):
        PointStore(path)


@pytest.mark.parametrize("content", ["", "no json\n", "[]\n", '{"format": "other", "version": 1}\n'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    """Before anything is written to it."""
    path = tmp_path / "points.jsonl"
    path.write_text(content)
    with pytest.raises(FormatError, match="not a wisp-study-points file"):
        PointStore(path)
    assert path.read_text() == content
