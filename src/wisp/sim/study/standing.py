"""What points say: means over seeds, ratios paired by seed, and the bars of the regime map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from wisp.policy.systems import SYSTEMS
from wisp.sim.capacity import Interval, paired_ratio
from wisp.sim.study.model import Cell, Point, PointId, Study

OURS, ORACLE = "wisp-plus", "oracle"
NEVER_BELOW, SOMEWHERE, OF_ORACLE = 0.95, 1.5, 0.85
"""The bars: of the best other system in every cell, of the best centralized one in some cell, of the oracle on average."""


@dataclass(frozen=True, slots=True)
class Results:
    """A study's points, by cell and system."""

    study: Study
    points: Mapping[PointId, Point]

    def of(self, cell: str, system: str) -> list[Point]:
        """One for each seed, in their order."""
        return [self.points[cell, system, seed] for seed in self.study.seeds]

    def capacities(self, cell: str, system: str) -> list[int]:
        """One for each seed. Raises ValueError where none was searched for."""
        found = [point.capacity for point in self.of(cell, system)]
        if any(capacity is None for capacity in found):
            raise ValueError(f"no capacity was searched for in {cell}")
        return [capacity for capacity in found if capacity is not None]

    def capacity(self, cell: str, system: str) -> Interval:
        """Devices served."""
        return Interval.of(self.capacities(cell, system))

    def over(self, cell: str, system: str, reference: str) -> Interval:
        """Ratio of capacities, paired by seed."""
        return paired_ratio(self.capacities(cell, system), self.capacities(cell, reference))

    def figure(self, cell: str, system: str, load: str, name: str) -> Interval | None:
        """A figure of the runs at some load; None where a seed has none."""
        runs = [point.runs.get(load) for point in self.of(cell, system)]
        values = [run[name] for run in runs if run is not None]
        return Interval.of(values) if len(values) == len(runs) else None


@dataclass(frozen=True, slots=True)
class CellVerdict:
    """How the systems stand in one cell of the map."""

    cell: Cell
    winner: str
    """Serves most devices on average, WISP+ where others serve as many; the oracle does not count."""
    best_other: str
    over_best_other: Interval
    over_centralized: Interval
    """Over the best centralized system."""
    over_oracle: float | None

    @property
    def missed(self) -> bool:
        """Whether the whole interval of WISP+ over the best other system lies below the bar."""
        return self.over_best_other.high < NEVER_BELOW


@dataclass(frozen=True, slots=True)
class MapVerdict:
    """How WISP+ stands over the whole map."""

    cells: tuple[CellVerdict, ...]

    @property
    def missed(self) -> tuple[CellVerdict, ...]:
        """Cells below the bar."""
        return tuple(cell for cell in self.cells if cell.missed)

    @property
    def below(self) -> tuple[CellVerdict, ...]:
        """Cells whose mean is below the bar, whatever the interval says."""
        return tuple(cell for cell in self.cells if cell.over_best_other.mean < NEVER_BELOW)

    @property
    def best_over_centralized(self) -> CellVerdict:
        """The cell in which WISP+ beats the best centralized system by most."""
        return max(self.cells, key=lambda cell: cell.over_centralized.mean)

    @property
    def over_best_other(self) -> float:
        """Geometric mean over the cells."""
        return geometric_mean(cell.over_best_other.mean for cell in self.cells)

    @property
    def over_oracle(self) -> float | None:
        """Geometric mean over the cells; None without an oracle."""
        ratios = [cell.over_oracle for cell in self.cells if cell.over_oracle is not None]
        return geometric_mean(ratios) if len(ratios) == len(self.cells) else None


def map_verdict(results: Results) -> MapVerdict | None:
    """The verdict on a study with WISP+, a centralized system and any other; None for other studies."""
    names = list(results.study.systems)
    centralized = [name for name in names if name in SYSTEMS and not SYSTEMS[name].drafts.on_devices]
    if OURS not in names or not centralized or not results.study.measure.searches:
        return None
    return MapVerdict(tuple(_cell_verdict(results, cell, names, centralized) for cell in results.study.cells))


def _cell_verdict(results: Results, cell: Cell, names: Sequence[str], centralized: Sequence[str]) -> CellVerdict:
    best = _best_by(lambda system: results.capacity(cell.name, system).mean)
    other = best(name for name in names if name not in (OURS, ORACLE))
    return CellVerdict(
        cell,
        winner=best(sorted((name for name in names if name != ORACLE), key=lambda name: name != OURS)),
        best_other=other,
        over_best_other=results.over(cell.name, OURS, other),
        over_centralized=results.over(cell.name, OURS, best(centralized)),
        over_oracle=results.over(cell.name, OURS, ORACLE).mean if ORACLE in names else None,
    )


def _best_by(value: Callable[[str], float]) -> Callable[[Iterable[str]], str]:
    return lambda names: max(names, key=value)


def geometric_mean(ratios: Iterable[float]) -> float:
    """0 if one of them is."""
    values = list(ratios)
    return math.exp(fmean(map(math.log, values))) if min(values) > 0.0 else 0.0
