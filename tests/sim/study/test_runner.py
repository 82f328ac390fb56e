"""Running studies: what is measured, in which order, how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.systems import SYSTEMS
from wisp.sim.capacity import capacity
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.study import runner
from wisp.sim.study.model import AT_CAPACITY, Cell, Measure, Point, Study
from wisp.sim.study.runner import run_study
from wisp.sim.study.store import PointStore
from wisp.sim.workload import Lengths, Workload
from wisp.types import SLO


def fifty_ms(_: BatchShape) -> float:
    """A step of 50 ms, whatever it carries."""
    return 0.05


def scenario(max_batch: int = 2) -> Scenario:
    """Sessions that are always on and take 10 tokens per second, of the 20 that each member of a batch gets."""
    return Scenario(
        fifty_ms,
        num_devices=4,
        fleet=Fleet(),
        workload=Workload(Lengths(4.0), Lengths(20.0), (SLO("10/s", 10.0, 1.0),), think_time=0.0),
        limits=SchedulerLimits(max_sessions=1000, max_batch_requests=max_batch),
        warmup=2.0,
        duration=4.0,
        drain=10.0,
        ramp=2.0,
    )


def study(of_capacity: tuple[float, ...] = (), seeds: tuple[int, ...] = (0, 1)) -> Study:
    """Two cells, the second of which starts from the first, and two systems."""
    cells = (Cell("small", scenario()), Cell("large", scenario(4), like="small"))
    systems = {name: SYSTEMS[name] for name in ("centralized", "fixed")}
    return Study("tiny", "two cells", cells, systems, seeds, Measure(of_capacity=of_capacity))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, str, int], int]]:
    """The points that were measured, with the fleets that their searches started from."""
    calls: list[tuple[tuple[str, str, int], int]] = []
    measure: Callable[..., Point] = runner.measure

    def logged(task: runner.Task, start: int) -> Point:
        calls.append((task.id, start))
        return measure(task, start)

    monkeypatch.setattr(runner, "measure", logged)
    return calls


def test_every_system_is_measured_in_every_cell_under_every_seed() -> None:
    """In the order in which they were asked for, with what was seen at capacity."""
    points = run_study(study(), None)
    assert list(points) == [
        (cell, system, seed) for cell in ("small", "large") for system in ("centralized", "fixed") for seed in (0, 1)
    ]
    point = points["small", "fixed", 1]
    assert point.capacity == capacity(scenario(), SYSTEMS["fixed"], 1)
    assert point.runs[AT_CAPACITY]["num_devices"] == point.capacity


def test_searches_start_from_the_neighbouring_cell_and_the_first_seed(
    measured: list[tuple[tuple[str, str, int], int]],
) -> None:
    """Of the same system."""
    points = run_study(study(), None)
    starts = dict(measured)
    assert starts["small", "fixed", 0] == 4
    assert starts["small", "fixed", 1] == points["small", "fixed", 0].capacity
    assert starts["large", "fixed", 0] == points["small", "fixed", 0].capacity


def test_loads_may_be_multiples_of_the_capacity() -> None:
    """Of the system's own."""
    point = run_study(study(of_capacity=(1.5,), seeds=(0,)), None)["small", "centralized", 0]
    assert point.capacity is not None
    assert point.runs["1.5x capacity"]["num_devices"] == round(1.5 * point.capacity)


def test_loads_may_be_multiples_of_the_fleet() -> None:
    """Then nothing need be searched for."""
    fixed = replace(study(), measure=Measure(searches=False, of_fleet=(1.0, 3.0)))
    point = run_study(fixed, None)["small", "centralized", 0]
    assert point.capacity is None
    assert {load: run["num_devices"] for load, run in point.runs.items()} == {"1x fleet": 4, "3x fleet": 12}
    assert point.runs["3x fleet"]["attainment"] < point.runs["1x fleet"]["attainment"] == 1.0


def test_loads_that_nobody_could_run_are_refused() -> None:
    """Multiples of a capacity that is not searched for, and nothing at all."""
    for loads in ((), (1.5,)):
        with pytest.raises(ConfigError, match="needs loads"):
            Measure(searches=False, of_capacity=loads)


def test_a_system_that_serves_nobody_has_a_capacity_of_zero() -> None:
    """And nothing was seen at capacity."""
    hopeless = replace(scenario(), workload=replace(scenario().workload, slos=(SLO("10/s", 10.0, 0.001),)))
    alone = replace(study(seeds=(0,)), cells=(Cell("hopeless", hopeless),))
    point = run_study(alone, None)["hopeless", "centralized", 0]
    assert (point.capacity, point.runs) == (0, {})


def test_finished_points_are_not_measured_again(
    tmp_path: Path, measured: list[tuple[tuple[str, str, int], int]]
) -> None:
    """A study that was cut off goes on; another seed is measured alone."""
    path = tmp_path / "points.jsonl"
    first = run_study(study(seeds=(0,)), PointStore(path))
    assert len(measured) == 4
    measured.clear()
    both = run_study(study(seeds=(0, 1)), PointStore(path))
    assert {seed for (_, _, seed), _ in measured} == {1}
    assert both["large", "fixed", 0] == first["large", "fixed", 0]


def test_other_settings_are_measured_again(tmp_path: Path, measured: list[tuple[tuple[str, str, int], int]]) -> None:
    """Points are known by what defines them, not by their names."""
    path = tmp_path / "points.jsonl"
    run_study(study(seeds=(0,)), PointStore(path))
    measured.clear()
    systems = {"centralized": SYSTEMS["centralized"], "fixed": replace(SYSTEMS["fixed"], max_draft_tokens=2)}
    run_study(replace(study(seeds=(0,)), systems=systems), PointStore(path))
    assert [name for (_, name, _), _ in measured] == ["fixed", "fixed"]


def test_workers_do_not_change_the_points() -> None:
    """One process and two find the same."""
    assert run_study(study(), None, workers=1) == run_study(study(), None, workers=2)


def test_progress_hears_of_every_point(tmp_path: Path) -> None:
    """Of those that were there already, too."""
    store = PointStore(tmp_path / "points.jsonl")
    for _ in range(2):
        told: list[Point] = []
        points = run_study(study(seeds=(0,)), store, told=told.append)
        assert told == list(points.values())


def test_a_study_without_workers_is_refused() -> None:
    """By name of what is wrong."""
    with pytest.raises(ConfigError, match="at least 1 worker"):
        run_study(study(), None, workers=0)


def test_cells_that_do_not_fit_together_are_refused() -> None:
    """A cell can only start from one before it, and names are unique."""
    small = study().cells[0]
    with pytest.raises(ConfigError, match="two cells small"):
        replace(study(), cells=(small, small))
    with pytest.raises(ConfigError, match="does not come before it"):
        replace(study(), cells=(replace(small, like="large"),))
