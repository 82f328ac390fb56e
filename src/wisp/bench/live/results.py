"""The points that are done, on disk as they come: a run that was cut off goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wisp.bench.live.measures import Measures
from wisp.bench.live.search import Tried
from wisp.errors import FormatError

FORMAT = "wisp-bench-points"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Point:
    """One system under one load."""

    cell: str
    system: str
    seed: int
    num_devices: int
    measures: Measures

    def tried(self, level: float) -> Tried:
        """As the search sees it."""
        return Tried(self.num_devices, self.measures.attainment, self.measures.passes(level))

    def line(self) -> str:
        """As it is written."""
        content = {
            "cell": self.cell,
            "system": self.system,
            "seed": self.seed,
            "num_devices": self.num_devices,
            "measures": self.measures.as_json(),
        }
        return json.dumps(content, separators=(",", ":")) + "\n"


class Results:
    """The finished points of one comparison, in the order in which they were measured."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on with the file if it is there; a line that was cut off is dropped. Raises FormatError."""
        self.points: list[Point] = []
        if path.exists():
            self.points = list(_read(path, settings))
        self._path = path
        head = json.dumps({"format": FORMAT, "version": VERSION, "settings": settings})
        try:
            temporary = path.with_name(f"part-{path.name}")
            temporary.write_text(head + "\n" + "".join(point.line() for point in self.points), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise FormatError(f"cannot write the results {path}: {error.strerror or error}") from error

    def add(self, point: Point) -> None:
        """Note a point; it is on disk afterwards."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(point.line())
        self.points.append(point)

    def of(self, cell: str, system: str, seed: int | None = None) -> list[Point]:
        """Those of one system in one cell, by size."""
        found = [
            point
            for point in self.points
            if (point.cell, point.system) == (cell, system) and seed in (None, point.seed)
        ]
        return sorted(found, key=lambda point: point.num_devices)

    def tried(self, cell: str, system: str, seed: int, level: float) -> list[Tried]:
        """The same, as the search sees them."""
        return [point.tried(level) for point in self.of(cell, system, seed)]


def _read(path: Path, settings: dict[str, Any]) -> Iterator[Point]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        head = json.loads(lines[0])
        known = (head["format"], head["version"]) == (FORMAT, VERSION)
        theirs = head["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"cannot read the results {path}: {error!r}") from error
    if not known:
        raise FormatError(f"{path} is not a {FORMAT} of version {VERSION}")
    if theirs != settings:
        names = [name for name in settings if theirs.get(name) != settings[name]]
        raise FormatError(
            f"{path} was begun with other settings ({', '.join(names)}): take another --out, or the same settings"
        )
    for number, line in enumerate(lines[1:-1], 2):
        try:
            content = json.loads(line)
            measures = Measures.of_json(content.pop("measures"))
            yield Point(**content, measures=measures)
        except (ValueError, KeyError, TypeError, FormatError) as error:
            raise FormatError(f"{path}, line {number}: not a point: {error}") from error
