"""Several verifiers, their loss, refused sessions, and devices that vanish."""

from __future__ import annotations

import gc
from dataclasses import replace
from math import inf

import pytest

from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape
from wisp.policy.placement import PLACEMENTS
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.systems import SYSTEMS
from wisp.sim.cluster import VerifierLoss
from wisp.sim.network import Churn
from wisp.sim.report import Report
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import Simulation, simulate
from wisp.sim.workload import Arrivals, Lengths, Spread, TracedSession, Workload
from wisp.types import SLO

FLEET = Fleet(Spread(50.0, 50.0), rtt=Spread(0.02, 0.02), jitter=0.0)
SLOW = SLO("slow", 2.0, 5.0)
CENTRALIZED, FIXED = SYSTEMS["centralized"], SYSTEMS["fixed"]


def _batch_time(shape: BatchShape) -> float:
    return 0.01 + 1e-4 * shape.num_new


def _sessions(*arrivals: float, num_output: int = 100) -> Workload:
    trace = tuple(TracedSession(time, 50, num_output) for time in arrivals)
    return Workload(slos=(SLOW,), trace=trace)


BASE = Scenario(_batch_time, fleet=FLEET, workload=_sessions(0.0), warmup=0.0, duration=30.0)


def _run(scenario: Scenario, system: str = "fixed", seed: int = 0) -> Report:
    return simulate(scenario, SYSTEMS[system], seed)


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_several_verifiers_serve_what_one_cannot(placement: object) -> None:
    """Eight sessions at a time where each verifier takes two: all are served on four, a part on one."""
    workload = _sessions(*(0.01 * index for index in range(8)))
    scenario = replace(BASE, workload=workload, attempts=1, limits=SchedulerLimits(max_sessions=2))
    assert _run(scenario).num_unfinished == 6
    spread = replace(scenario, num_verifiers=4, placement=placement, limits=SchedulerLimits(max_sessions=8))
    assert _run(spread).num_unfinished == 0


def test_sessions_are_shared_by_the_verifiers() -> None:
    """Eight at a time on four: two each, on the least loaded."""
    workload = _sessions(*(0.01 * index for index in range(8)))
    simulation = Simulation(replace(BASE, workload=workload, num_verifiers=4), FIXED, 0)
    verifiers = simulation.cluster.verifiers
    seen: list[set[str]] = [set() for _ in verifiers]
    for verifier, sessions in zip(verifiers, seen, strict=True):
        verifier.watch = lambda batch, started, elapsed, sessions=sessions: sessions.update(  # type: ignore[misc]
            member.request.session_id for member in batch.members
        )
    simulation.run()
    assert [len(sessions) for sessions in seen] == [2, 2, 2, 2]


def test_a_refused_session_is_asked_for_again_after_the_time_that_the_server_names() -> None:
    """The second waits until the first has ended, and starts one retry later at most."""
    limits = SchedulerLimits(max_sessions=1, retry_after=0.5)
    scenario = replace(BASE, workload=_sessions(0.0, 0.0, num_output=10), limits=limits, attempts=100)
    report = _run(scenario, "centralized")
    assert report.num_unfinished == 0
    first = simulate(replace(scenario, workload=_sessions(0.0, num_output=10)), CENTRALIZED, 0).virtual_time
    assert 0.5 <= report.p95_first_token_time <= first + 1.0


def test_a_session_that_never_starts_is_missed() -> None:
    """It was offered: attempts run out while the only place is taken."""
    limits = SchedulerLimits(max_sessions=1, retry_after=0.1)
    report = _run(replace(BASE, workload=_sessions(0.0, 0.01, num_output=400), limits=limits, attempts=3))
    assert (report.num_sessions, report.num_unfinished, report.attainment) == (2, 1, 0.5)


def test_sessions_of_a_lost_verifier_go_on_elsewhere() -> None:
    """All end, with all their tokens; the history is read again, so more positions are computed."""
    scenario = replace(BASE, num_verifiers=2, workload=_sessions(*(0.1 * index for index in range(6))))
    lost = replace(scenario, losses=(VerifierLoss(0, 1.0),))
    without, report = _run(scenario), _run(lost)
    assert report.num_unfinished == 0
    assert report.num_resumed == 3
    assert report.cost.num_committed == without.cost.num_committed == 600
    assert report.cost.num_positions > without.cost.num_positions


@pytest.mark.parametrize("after", [-0.005, 0.005], ids=["last verdict on its way", "close on its way"])
def test_a_session_that_ends_while_its_verifier_is_lost_is_over(after: float) -> None:
    """The device has all of its tokens: nothing is opened again."""
    scenario = replace(BASE, num_verifiers=2, workload=_sessions(0.0, num_output=5))
    whole = Simulation(scenario, CENTRALIZED, 0)
    whole.run()
    end = whole.observer.seen.judged[0].token_times[-1]
    report = _run(replace(scenario, losses=(VerifierLoss(0, end + after),)), "centralized")
    assert (report.num_sessions, report.num_unfinished, report.num_resumed) == (1, 0, 0)


def test_a_history_that_moves_is_computed_again_to_the_token() -> None:
    """Plain decoding of one session: prompt and output so far, minus the batch that was lost with the verifier."""
    scenario = replace(BASE, num_verifiers=2)
    without = _run(scenario, "centralized")
    simulation = Simulation(replace(scenario, losses=(VerifierLoss(0, 0.5),)), CENTRALIZED, 0)
    histories: list[int] = []
    verifier = simulation.cluster.verifiers[1]
    verifier.watch = lambda batch, started, elapsed: histories.extend(
        member.request.num_history_tokens for member in batch.members
    )
    simulation.run()
    assert without.cost.num_positions == 50 + 99
    assert histories[0] > 50
    assert histories[-1] == 50 + 99


def test_without_another_verifier_sessions_wait_for_the_lost_one() -> None:
    """It comes back empty; nothing of their texts is lost."""
    report = _run(replace(BASE, losses=(VerifierLoss(0, 0.5, until=4.0),)))
    assert (report.num_unfinished, report.num_resumed, report.cost.num_committed) == (0, 1, 100)


def test_new_sessions_give_up_where_no_verifier_is_up() -> None:
    """After their attempts."""
    report = _run(replace(BASE, workload=_sessions(1.0), losses=(VerifierLoss(0, 0.5),), attempts=2))
    assert (report.num_sessions, report.num_unfinished) == (1, 1)


def test_devices_that_vanish_come_back_and_go_on() -> None:
    """No token is lost or committed twice, whatever was on the way."""
    churn = Churn(rate=2.0, away=0.3)
    scenario = replace(BASE, fleet=replace(FLEET, churn=churn), workload=_sessions(*(0.3 * i for i in range(10))))
    report = _run(scenario)
    assert report.num_resumed > 5
    assert (report.num_unfinished, report.num_abandoned, report.cost.num_committed) == (0, 0, 1000)


def test_sessions_that_their_users_give_up_are_not_judged() -> None:
    """They are counted apart."""
    churn = Churn(rate=1.0, abandoned=1.0)
    scenario = replace(BASE, fleet=replace(FLEET, churn=churn), workload=_sessions(*(0.3 * i for i in range(10))))
    report = _run(scenario)
    assert report.num_abandoned > 0
    assert report.num_sessions + report.num_abandoned == 10
    assert report.num_unfinished == 0


def test_a_vanished_device_leaves_its_place_to_others() -> None:
    """The server closes a session whose connection broke."""
    limits = SchedulerLimits(max_sessions=1, retry_after=0.2)
    churn = Churn(rate=5.0, abandoned=1.0)
    fleet = replace(FLEET, churn=churn)
    workload = _sessions(0.0, 0.1, 0.2, num_output=2000)
    report = _run(replace(BASE, fleet=fleet, workload=workload, limits=limits, attempts=1000))
    assert report.num_abandoned == 3


def test_the_same_seed_brings_the_same_losses_and_returns() -> None:
    """Churn, refusals and a lost verifier together."""
    scenario = replace(
        BASE,
        num_devices=20,
        num_verifiers=2,
        fleet=Fleet(churn=Churn(0.2, 1.0, 0.3), loss=0.02),
        workload=Workload(Lengths(40.0, 0.5), Lengths(40.0, 0.5), (SLOW,), think_time=1.0),
        limits=SchedulerLimits(max_sessions=6),
        losses=(VerifierLoss(1, 5.0, 12.0),),
    )
    first, again, other = (_run(scenario, "wisp-plus", seed).as_dict() for seed in (1, 1, 2))
    assert first == again != other
    assert first["num_resumed"] > 0


def test_a_run_leaves_no_reference_cycles() -> None:
    """The collector rests while it lasts: sessions that ended, were lost, refused or given up are freed without it."""
    simulation = Simulation(
        replace(
            BASE,
            num_verifiers=2,
            fleet=Fleet(churn=Churn(0.5, 1.0, 0.3)),
            workload=Workload(Lengths(40.0, 0.5), Lengths(40.0, 0.5), (SLOW,), arrivals=Arrivals(4.0)),
            limits=SchedulerLimits(max_sessions=6),
            losses=(VerifierLoss(1, 5.0, 12.0),),
        ),
        SYSTEMS["wisp-plus"],
        seed=0,
    )
    gc.collect()
    gc.disable()
    try:
        report = simulation.run()
        assert gc.collect() < 50 < report.num_sessions
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VerifierLoss(-1, 1.0), "lost at a time"),
        (lambda: VerifierLoss(0, 2.0, 1.0), "lost at a time"),
        (lambda: VerifierLoss(0, inf), "lost at a time"),
        (lambda: Churn(-1.0), "disconnections need"),
        (lambda: Churn(1.0, abandoned=1.5), "disconnections need"),
        (lambda: replace(BASE, num_verifiers=0), "num_verifiers must be at least 1"),
        (lambda: replace(BASE, attempts=0), "attempts must be at least 1"),
        (lambda: Simulation(replace(BASE, losses=(VerifierLoss(3, 1.0),)), FIXED, 0), "there is no verifier 3"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    """With the value in the message."""
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
