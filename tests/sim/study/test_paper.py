"""The paper's ratios beside ours."""

from __future__ import annotations

from dataclasses import replace

from wisp.sim.study.model import Point
from wisp.sim.study.paper import claim_sheet, paper
from wisp.sim.study.standing import Results


def test_every_claim_is_shown_under_every_reading_and_setting() -> None:
    """Ratios of capacity, of goodput at 70 devices, and of goodput at capacity."""
    study = replace(paper(), seeds=(0, 1))
    served = dict.fromkeys(study.systems, 50) | {"wisp": 100}
    points = {
        (cell.name, system, seed): Point(
            cell.name,
            system,
            seed,
            served[system],
            {"1x capacity": {"goodput": 4.0 * served[system]}, "1x fleet": {"goodput": 200.0 + served[system]}},
        )
        for cell in study.cells
        for system in study.systems
        for seed in study.seeds
    }
    sheet = claim_sheet(Results(study, points))
    rows = [row for row in sheet.rows if row[:2] == ("wisp over SLED", "sled-4")]
    assert [row[2] for row in rows] == [cell.name for cell in study.cells]
    assert rows[0][3:] == ("2.00 +- 0.00", "4.1", "1.20 +- 0.00", "2.00 +- 0.00", "3.7")


def test_a_system_without_goodput_has_no_ratio() -> None:
    """A dash, not a division by zero."""
    study = replace(paper(), seeds=(0,))
    points = {
        (cell.name, system, 0): Point(cell.name, system, 0, 0, {"1x fleet": {"goodput": 0.0}})
        for cell in study.cells
        for system in study.systems
    }
    assert all(row[5] == row[6] == "-" for row in claim_sheet(Results(study, points)).rows)
