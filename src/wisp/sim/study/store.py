"""Finished points on disk: a line of JSON each, as they come; a run that was cut off goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wisp.errors import FormatError
from wisp.sim.study.model import Point

FORMAT, VERSION = "wisp-study-points", 1


class PointStore:
    """The points of one file, by fingerprint; several studies may share it. Raises FormatError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._points: dict[str, Point] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._points = dict(self._read())
            else:
                path.write_text(json.dumps({"format": FORMAT, "version": VERSION}) + "\n", encoding="utf-8")
        except OSError as error:
            raise FormatError(f"cannot use {path} for the points of a study: {error.strerror or error}") from error

    def find(self, key: str) -> Point | None:
        """The point of that fingerprint, if it is there."""
        return self._points.get(key)

    def add(self, key: str, point: Point) -> None:
        """Keep a point; it is on disk afterwards."""
        line = {
            "key": key,
            "cell": point.cell,
            "system": point.system,
            "seed": point.seed,
            "capacity": point.capacity,
            "runs": point.runs,
        }
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
        except OSError as error:
            raise FormatError(f"cannot write to {self._path}: {error.strerror or error}") from error
        self._points[key] = point

    def _read(self) -> Iterator[tuple[str, Point]]:
        text = self._path.read_text(encoding="utf-8")
        lines = text.split("\n")
        if not _is_head(lines[0]):
            raise FormatError(f"{self._path} is not a {FORMAT} file of version {VERSION}: name another folder")
        if lines[-1]:  # the run was cut off within a line, which is measured again
            self._path.write_text(text[: -len(lines[-1])], encoding="utf-8")
        for number, line in enumerate(lines[1:-1], 2):
            yield self._point(number, line)

    def _point(self, number: int, line: str) -> tuple[str, Point]:
        try:
            content: dict[str, Any] = json.loads(line)
            key = str(content.pop("key"))
            return key, Point(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{self._path}, line {number} is not a point: {error}; remove the line, it is measured again"
            ) from error


def _is_head(line: str) -> bool:
    try:
        head = json.loads(line)
        return bool(head["format"] == FORMAT and head["version"] == VERSION)
    except (ValueError, KeyError, TypeError):
        return False
