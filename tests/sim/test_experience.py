"""Servers that have served before."""

from __future__ import annotations

import numpy as np
import pytest

from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.scheduler import Scheduler, SchedulerLimits
from wisp.policy.systems import SYSTEMS, SchedulerTerms
from wisp.sim.acceptance import AcceptanceModel
from wisp.sim.experience import serve_before
from wisp.sim.script import SessionScript
from wisp.types import SLO, Admitted, SessionDemand, SessionId, WaitUntil

CLASS = SLO("class", 4.0, 4.0)


def _scheduler(system: str = "centralized-slo") -> Scheduler:
    return SYSTEMS[system].scheduler(SchedulerTerms(SchedulerLimits(max_sessions=1000), BatchTimeModel(0.05, 0.001)))


def _scripts(number: int) -> list[SessionScript]:
    """Answers of 24 tokens; what their drafts meet does not matter."""
    rng = np.random.default_rng(0)
    return [SessionScript(64, 24, CLASS, AcceptanceModel().fate(24, rng)) for _ in range(number)]


def _num_admitted(scheduler: Scheduler) -> int:
    """Of sessions that come at the same time, and may have long answers."""
    demands = (SessionDemand(SessionId(str(number)), 64, 1024, CLASS) for number in range(1000))
    return sum(isinstance(scheduler.admit(demand, 1.0), Admitted) for demand in demands)


def test_who_knows_that_answers_are_short_admits_more() -> None:
    """The time for the first token is a good part of a short answer's."""
    fresh, experienced = _scheduler(), _scheduler()
    serve_before(experienced, _scripts(32))
    assert _num_admitted(experienced) > 1.2 * _num_admitted(fresh)


@pytest.mark.parametrize("system", ["centralized", "centralized-slo", "sled", "wisp", "wisp-plus"])
def test_nothing_is_left_of_them(system: str) -> None:
    """No session, and no request that waits."""
    scheduler = _scheduler(system)
    serve_before(scheduler, _scripts(32))
    assert scheduler.schedule(1.0) == WaitUntil(float("inf"))
