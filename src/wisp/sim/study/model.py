"""A study: a list of cells x systems x seeds, and the points that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from wisp.errors import ConfigError
from wisp.policy.systems import System
from wisp.sim.report import Report
from wisp.sim.scenario import Scenario

AT_CAPACITY = "1x capacity"
"""The run of a point whose load is the capacity itself."""


def of_capacity(load: float) -> str:
    """The run at a multiple of the system's capacity."""
    return f"{load:g}x capacity"


def of_fleet(load: float) -> str:
    """The run at a multiple of the cell's fleet."""
    return f"{load:g}x fleet"


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured of every cell, system and seed."""

    searches: bool = True
    """Whether the capacity is searched for."""
    of_capacity: tuple[float, ...] = ()
    """Runs at these multiples of the system's own capacity."""
    of_fleet: tuple[float, ...] = ()
    """Runs at these multiples of the cell's fleet."""
    level: float = 0.95
    """Share of attained sessions at which a fleet counts as served."""

    def __post_init__(self) -> None:
        if not self.searches and (self.of_capacity or not self.of_fleet):
            raise ConfigError("a study without a search for the capacity needs loads that do not depend on it")


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition under which all systems are compared; its fleet is where a search starts."""

    name: str
    scenario: Scenario
    labels: Mapping[str, str] = field(default_factory=dict)
    """Its place on each axis."""
    like: str | None = None
    """An earlier cell from whose capacities its searches start."""


@dataclass(frozen=True, slots=True)
class Study:
    """What is to be found out. Raises ConfigError where cells or systems do not fit together."""

    name: str
    caption: str
    cells: tuple[Cell, ...]
    systems: Mapping[str, System]
    seeds: tuple[int, ...]
    measure: Measure = field(default_factory=Measure)
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """Axes of its maps."""
    reference: str = "centralized"
    """The system that others are shown over."""

    def __post_init__(self) -> None:
        known: set[str] = set()
        for cell in self.cells:
            if cell.name in known:
                raise ConfigError(f"study {self.name}: there are two cells {cell.name}")
            if cell.like is not None and cell.like not in known:
                raise ConfigError(f"study {self.name}: {cell.name} is like {cell.like}, which does not come before it")
            known.add(cell.name)
        if not (self.cells and self.systems and self.seeds):
            raise ConfigError(f"study {self.name} needs cells, systems and seeds")

    def tasks(self) -> Iterator[Task]:
        """Its points to be, none before those whose capacities it starts from."""
        for cell in self.cells:
            for name, system in self.systems.items():
                for seed in self.seeds:
                    yield Task(cell, name, system, seed, self.measure, self._after(cell, name, seed))

    def _after(self, cell: Cell, system: str, seed: int) -> PointId | None:
        first = self.seeds[0]
        if seed != first:
            return cell.name, system, first
        return None if cell.like is None else (cell.like, system, first)


PointId = tuple[str, str, int]
"""Cell, system and seed."""


@dataclass(frozen=True, slots=True)
class Task:
    """One point to be."""

    cell: Cell
    system_name: str
    system: System
    seed: int
    measure: Measure
    after: PointId | None
    """The point whose capacity its search starts from."""

    @property
    def id(self) -> PointId:
        return self.cell.name, self.system_name, self.seed


Figures = Mapping[str, float]
"""What is kept of a run: FIGURES by name."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one system did in one cell under one seed."""

    cell: str
    system: str
    seed: int
    capacity: int | None
    """Devices; None: not searched for."""
    runs: Mapping[str, Figures]
    """By load; AT_CAPACITY is there if at least one device is served."""

    @property
    def id(self) -> PointId:
        return self.cell, self.system, self.seed


def figures(report: Report, num_devices: int) -> Figures:
    """What is kept of a run; times in seconds, rates per second."""
    return {
        "num_devices": float(num_devices),
        "num_sessions": float(report.num_sessions),
        "num_unfinished": float(report.num_unfinished),
        "num_resumed": float(report.num_resumed),
        "attainment": report.attainment,
        "worst_class": min(report.attainment_by_class.values(), default=1.0),
        "goodput": report.goodput,
        "tokens_per_s": report.tokens_per_s,
        "utilisation": report.utilisation,
        "requests_per_batch": report.requests_per_batch,
        "positions_per_token": report.cost.positions_per_token,
        "engine_time_per_token": report.cost.engine_time_per_token,
        "accepted_share": report.drafting.accepted_share,
        "waste_ratio": report.drafting.waste_ratio,
        "mean_interference": report.mean_interference,
        "p95_first_token_time": report.p95_first_token_time,
        "num_events": float(report.num_events),
    }
