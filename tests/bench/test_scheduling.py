"""What a decision of the scheduler costs is measured where there is something to decide."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from wisp.bench.scheduling import BUSY_S, FEW, SETTINGS, scheduling_costs, with_waiting
from wisp.types import Batch


def test_both_systems_are_timed() -> None:
    """Few beside many waiting."""
    with Progress(disable=True) as progress:
        costs = scheduling_costs(1, progress)
    assert [cost.system for cost in costs] == ["wisp", "wisp-plus"]
    assert all(cost.few_s > 0.0 and cost.many_s > 0.0 for cost in costs)


@pytest.mark.parametrize("system", SETTINGS)
def test_the_decision_is_a_batch_under_load(system: str) -> None:
    """Of an engine so busy that positions have a price."""
    scheduler = with_waiting(SETTINGS[system], FEW)
    assert scheduler.prices().per_position > 0.0
    assert isinstance(scheduler.schedule(BUSY_S), Batch)
