"""What points say of WISP+ and the others: the bars of the regime map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from wisp.policy.batch_time import BatchShape
from wisp.policy.systems import SYSTEMS
from wisp.sim.scenario import Scenario
from wisp.sim.study.model import Cell, Measure, Point, Study
from wisp.sim.study.standing import MapVerdict, Results, geometric_mean, map_verdict


def no_time(_: BatchShape) -> float:
    """Nothing is simulated here."""
    return 0.0


def results(capacities: Mapping[str, Mapping[str, Sequence[int]]]) -> Results:
    """Points with these capacities: cell, system, seed."""
    systems = list(next(iter(capacities.values())))
    num_seeds = len(next(iter(next(iter(capacities.values())).values())))
    cells = tuple(Cell(name, Scenario(no_time), {"row": name, "column": "only"}) for name in capacities)
    study = Study(
        "made up",
        "made up",
        cells,
        {name: SYSTEMS.get(name, SYSTEMS["fixed"]) for name in systems},
        tuple(range(num_seeds)),
        rows=("row",),
        columns=("column",),
    )
    points = {
        (cell, system, seed): Point(
            cell,
            system,
            seed,
            found,
            {"1x capacity": {"goodput": 2.0 * found, "attainment": 0.96, "engine_time_per_token": 0.01}},
        )
        for cell, by_system in capacities.items()
        for system, of_seeds in by_system.items()
        for seed, found in enumerate(of_seeds)
    }
    return Results(study, points)


def verdict(capacities: Mapping[str, Mapping[str, Sequence[int]]]) -> MapVerdict:
    """On such points."""
    found = map_verdict(results(capacities))
    assert found is not None
    return found


def test_the_best_other_system_is_the_one_that_serves_most_on_average() -> None:
    """The oracle is not one of them, and not a winner."""
    of = {"centralized": [50, 50], "wisp": [90, 110], "oracle": [200, 200], "wisp-plus": [80, 80]}
    (cell,) = verdict({"cell": of}).cells
    assert (cell.best_other, cell.winner) == ("wisp", "wisp")
    assert cell.over_best_other.mean == pytest.approx((80 / 90 + 80 / 110) / 2)
    assert cell.over_oracle == pytest.approx(0.4)


def test_wisp_plus_is_compared_with_the_best_centralized_system_apart() -> None:
    """Whichever drafts nowhere or on the server."""
    of = {"centralized": [40, 40], "centralized-draft": [50, 50], "sled": [90, 90], "wisp-plus": [100, 100]}
    (cell,) = verdict({"cell": of}).cells
    assert cell.over_centralized.mean == 2.0
    assert cell.over_best_other.mean == pytest.approx(100 / 90)


def test_where_as_many_are_served_by_another_the_winner_is_wisp_plus() -> None:
    """WISP+ without the server's drafter is one of the others, and the same system where drafting there does not pay."""
    of = {"centralized": [40, 40], "wisp-plus-edge": [90, 90], "wisp-plus": [90, 90]}
    (cell,) = verdict({"cell": of}).cells
    assert (cell.best_other, cell.winner) == ("wisp-plus-edge", "wisp-plus")


def test_a_cell_is_missed_when_its_whole_interval_is_below_the_bar() -> None:
    """A mean below the bar with an interval that reaches it is told, but not missed."""
    found = verdict(
        {
            "surely": {"centralized": [100, 100, 100], "wisp-plus": [90, 90, 90]},
            "perhaps": {"centralized": [100, 100, 100], "wisp-plus": [80, 90, 105]},
            "not": {"centralized": [100, 100, 100], "wisp-plus": [96, 96, 96]},
        }
    )
    assert [one.cell.name for one in found.missed] == ["surely"]
    assert [one.cell.name for one in found.below] == ["surely", "perhaps"]


def test_the_map_is_summed_up_by_geometric_means() -> None:
    """Of the ratios of its cells."""
    found = verdict(
        {
            "half": {"centralized": [100], "oracle": [100], "wisp-plus": [50]},
            "twice": {"centralized": [100], "oracle": [100], "wisp-plus": [200]},
        }
    )
    assert found.over_best_other == pytest.approx(1.0)
    assert found.over_oracle == pytest.approx(1.0)
    assert found.best_over_centralized.cell.name == "twice"


def test_without_an_oracle_nothing_is_said_of_one() -> None:
    """Not even 1."""
    assert verdict({"cell": {"centralized": [1], "wisp-plus": [1]}}).over_oracle is None


def test_a_study_without_wisp_plus_has_no_verdict() -> None:
    """It is a table only."""
    assert map_verdict(results({"cell": {"centralized": [1], "wisp": [1]}})) is None


def test_figures_are_those_of_all_seeds_or_none() -> None:
    """A system that serves nobody under one seed has no goodput at capacity."""
    found = results({"cell": {"centralized": [1, 3]}})
    interval = found.figure("cell", "centralized", "1x capacity", "goodput")
    assert interval is not None
    assert interval.mean == 4.0
    assert found.figure("cell", "centralized", "3x capacity", "goodput") is None


def test_capacities_that_nobody_searched_for_are_not_made_up() -> None:
    """Asking for them is a mistake."""
    found = results({"cell": {"centralized": [1]}})
    unsearched = Point("cell", "centralized", 0, None, {})
    study = Study("s", "s", found.study.cells, found.study.systems, (0,), Measure(searches=False, of_fleet=(1.0,)))
    with pytest.raises(ValueError, match="no capacity"):
        Results(study, {unsearched.id: unsearched}).capacities("cell", "centralized")


def test_a_ratio_of_zero_makes_the_mean_zero() -> None:
    """There is no logarithm of it."""
    assert geometric_mean([0.0, 2.0]) == 0.0
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
