"""What the points of a comparison say about each system, and what speaks against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from wisp.bench.live.measures import Measures
from wisp.bench.live.results import Point, Results
from wisp.bench.live.search import Capacity, capacity
from wisp.bench.live.settings import BenchSettings, Cell
from wisp.sim.capacity import Interval

LATE = 0.010
"""Seconds by which the driver's sleeps may end too late; the devices' own times are some tens of milliseconds."""
FEW_SESSIONS = 20
"""Fewer cannot tell 95 % from less: one that is missed is more than 5 %."""
SLOW_EMULATION = 1.1
"""Batches of emulated hardware may take so many times what they should."""


@dataclass(frozen=True, slots=True)
class SystemSummary:
    """One system in one cell."""

    system: str
    capacities: tuple[Capacity, ...]
    """One per seed."""
    points: tuple[Point, ...]
    """All of its points, by size."""
    common: tuple[Measures, ...]
    """Under the load that all systems were tried with: one per seed that has it."""

    @property
    def capacity(self) -> Interval:
        """Devices, over the seeds."""
        return Interval.of([one.devices for one in self.capacities])

    @property
    def at_least(self) -> bool:
        """Whether some seed met no size that failed: the true capacity is larger."""
        return any(one.high is None for one in self.capacities)

    @property
    def resolution(self) -> float | None:
        """Half the distance of the bounds, the worst seed's; None where there is no upper bound."""
        found = [one.resolution for one in self.capacities]
        return None if None in found else max(one for one in found if one is not None)

    @property
    def peak_goodput(self) -> float:
        """The highest at any size."""
        return max(point.measures.goodput for point in self.points)

    def at_common(self, value: Callable[[Measures], float]) -> float:
        """Mean over the seeds."""
        return fmean(value(measures) for measures in self.common)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "capacity": self.capacity.mean,
            "capacity_half_width": self.capacity.half_width,
            "capacity_at_least": self.at_least,
            "capacity_resolution": self.resolution,
            "goodput": self.peak_goodput,
            "per_seed": [asdict(one) for one in self.capacities],
            "points": [
                {
                    "num_devices": point.num_devices,
                    "seed": point.seed,
                    "attainment": point.measures.attainment,
                    "goodput": point.measures.goodput,
                }
                for point in self.points
            ],
            "at_common_load": [measures.as_json() for measures in self.common],
        }


@dataclass(frozen=True, slots=True)
class CellSummary:
    """All systems in one cell."""

    cell: Cell
    common_devices: int
    """The largest fleet that all systems were tried with."""
    first_devices: int
    """The fleet that they were tried with first, on servers that had served nobody yet."""
    systems: tuple[SystemSummary, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "common_devices": self.common_devices,
            "notes": list(self.notes),
            "systems": {one.system: one.as_json() for one in self.systems},
        }


def summarise(settings: BenchSettings, results: Results) -> list[CellSummary]:
    """Of every cell in which each system has a point."""
    complete = [cell for cell in settings.cells if all(results.of(cell.name, system) for system in settings.systems)]
    return [_cell(cell, settings, results) for cell in complete]


def _cell(cell: Cell, settings: BenchSettings, results: Results) -> CellSummary:
    points = {system: results.of(cell.name, system) for system in settings.systems}
    sizes = [{point.num_devices for point in of_system} for of_system in points.values()]
    common = max(set.intersection(*sizes), default=0)
    systems = tuple(_system(system, of_system, common, settings) for system, of_system in points.items())
    first = next(point.num_devices for point in results.points if point.cell == cell.name)
    return CellSummary(cell, common, first, systems, tuple(_notes(points, settings)))


def _system(system: str, points: Sequence[Point], common: int, settings: BenchSettings) -> SystemSummary:
    level = settings.search.level
    seeds = sorted({point.seed for point in points})
    tried = {seed: [point.tried(level) for point in points if point.seed == seed] for seed in seeds}
    return SystemSummary(
        system,
        tuple(capacity(tried[seed], level) for seed in seeds),
        tuple(points),
        tuple(point.measures for point in points if point.num_devices == common),
    )


def _notes(points: dict[str, list[Point]], settings: BenchSettings) -> list[str]:
    """What a reader has to know before believing the figures."""
    measures = [(system, point.num_devices, point.measures) for system, found in points.items() for point in found]
    late = [f"{system} at {size}" for system, size, one in measures if one.driver_lag_p95 > LATE]
    slow = [
        f"{system} at {size}"
        for system, size, one in measures
        if settings.engine == "timed" and (one.batch_time_ratio or 0.0) > SLOW_EMULATION
    ]
    few = [f"{system} at {size}" for system, size, one in measures if one.num_sessions < FEW_SESSIONS]
    failures = {name for _, _, one in measures for name in one.failures if name != "ServerBusy"}
    diverged = sum(one.num_diverged for _, _, one in measures)
    notes = []
    if few:
        notes.append(f"fewer than {FEW_SESSIONS} sessions judged, take a longer --duration: {_listed(few)}")
    if late:
        notes.append(
            f"the driver was late by more than {LATE * 1e3:.0f} ms (p95), devices slower than set: {_listed(late)}"
        )
    if slow:
        notes.append(f"emulated batches took over {SLOW_EMULATION:g} times as long as they should: {_listed(slow)}")
    if failures:
        notes.append(f"sessions failed with {', '.join(sorted(failures))}; they count as missed")
    if diverged:
        notes.append(f"{diverged} sessions left their recording (rounding near a tie): no drafts from there on")
    return notes


def _listed(names: Sequence[str], most: int = 6) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
