"""Searches the capacity of each system, compares them, and finds what limits the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape, BatchTime
from wisp.policy.systems import SYSTEMS, Drafts
from wisp.sim.capacity import Interval
from wisp.sim.machine import choose
from wisp.sim.plan.guess import first_guess, with_times
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import simulate
from wisp.sim.study.model import Cell, Measure, Point, Study, of_capacity
from wisp.sim.study.runner import run_study
from wisp.sim.study.standing import Results

QUICK_SYSTEMS = ("centralized", "centralized-slo", "centralized-draft", "wisp", "wisp-plus-edge", "wisp-plus")
THOROUGH_SYSTEMS = (
    *("centralized", "centralized-slo", "centralized-draft", "sled", "sled-fcfs", "fixed", "wisp"),
    *("wisp-plus-edge", "wisp-plus"),
)
"""From the simplest to the one with most parts."""
CELL = "plan"
AS_GOOD = 0.97
"""Of the most devices served: among these the simplest system is recommended."""
RELIEF = 1.5
"""By how much each resource is relieved, to see whether the system then serves more."""
BEYOND = 1.15
"""Times the capacity: the load at which that is tried."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look."""

    systems: tuple[str, ...]
    num_seeds: int
    num_judged: int
    """Sessions that a run at capacity judges, about."""
    shortest: float
    longest: float
    """Seconds that are judged in a run."""


QUICK = Effort(QUICK_SYSTEMS, 3, 250, 15.0, 120.0)
THOROUGH = Effort(THOROUGH_SYSTEMS, 6, 800, 30.0, 300.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found."""

    results: Results
    recommended: str
    margin: float
    """Share of the capacity that is to be used."""
    limits: tuple[str, ...]
    """What lets the recommended system serve more when it is relieved, by name of RELIEFS; empty: none of them alone."""

    @property
    def systems(self) -> Sequence[str]:
        return list(self.results.study.systems)

    def capacity(self, system: str) -> Interval:
        """Devices that a system serves."""
        return self.results.capacity(CELL, system)

    def devices(self, system: str) -> int:
        """Devices that a system is to be given, with the margin."""
        return int(self.margin * self.capacity(system).mean)

    def figure(self, system: str, name: str) -> Interval | None:
        """A figure at that load."""
        return self.results.figure(CELL, system, of_capacity(self.margin), name)

    @property
    def best_centralized(self) -> str:
        """The system without drafts on devices that serves most of them."""
        return self._best(lambda system: not SYSTEMS[system].drafts.on_devices)

    @property
    def best_drafting(self) -> str:
        """The system with drafts on devices that serves most of them."""
        return self._best(lambda system: SYSTEMS[system].drafts.on_devices)

    @property
    def drafting_over_centralized(self) -> Interval:
        """Devices served by the best of either kind, paired by seed."""
        return self.results.over(CELL, self.best_drafting, self.best_centralized)

    def _best(self, wanted: Callable[[str], bool]) -> str:
        return max(filter(wanted, self.systems), key=lambda system: self.capacity(system).mean)


def make_plan(
    scenario: Scenario,
    effort: Effort,
    margin: float,
    workers: int = 1,
    told: Callable[[Point], None] = lambda point: None,
) -> Plan:
    """Search, compare, and try what limits. Raises ConfigError where nothing is served at all."""
    if not 0.0 < margin <= 1.0:
        raise ConfigError(f"the share of the capacity to be used must be in 0..1 (0 excluded), not {margin}")
    if scenario.workload.trace or scenario.workload.arrivals is not None:
        raise ConfigError(
            "a plan counts devices: it needs a closed fleet, not a rate or a trace's arrivals (--lengths)"
        )
    kinds = {choose("system", name, SYSTEMS).drafts.on_devices for name in effort.systems}
    if len(kinds) < 2:
        raise ConfigError("a plan compares systems that draft on devices with others: name at least one of each kind")
    study = study_of(scenario, effort, margin)
    results = Results(study, run_study(study, None, workers, told))
    recommended = recommend({system: results.capacity(CELL, system).mean for system in study.systems})
    limits = tuple(limiting(study.cells[0].scenario, recommended, results.capacity(CELL, recommended).mean))
    return Plan(results, recommended, margin, limits)


def study_of(scenario: Scenario, effort: Effort, margin: float) -> Study:
    """All systems in one cell, at capacity and with the margin."""
    left_out = _same_without_drafter(effort.systems) if scenario.server_drafter is None else []
    systems = {name: SYSTEMS[name] for name in effort.systems if name not in left_out}
    timed = with_times(scenario, first_guess(scenario), effort.num_judged, effort.shortest, effort.longest)
    return Study(
        "plan",
        "Systems compared",
        (Cell(CELL, timed),),
        systems,
        tuple(range(effort.num_seeds)),
        Measure(of_capacity=(margin,)),
    )


def _same_without_drafter(names: Sequence[str]) -> list[str]:
    """Systems that are pointless where there is no drafter beside the target: they need one, or are WISP+ without it."""
    return [
        name
        for name in names
        if SYSTEMS[name].drafts is Drafts.ON_SERVER or (name == "wisp-plus-edge" and "wisp-plus" in names)
    ]


def recommend(capacities: Mapping[str, float]) -> str:
    """The first system, in the order given, that serves about as many devices as the best. Raises ConfigError."""
    most = max(capacities.values())
    if most < 1.0:
        raise ConfigError(
            "no system serves even one such device within its SLO: take a faster GPU, a smaller model, fewer weight "
            "bits, shorter prompts or a looser SLO"
        )
    return next(system for system, capacity in capacities.items() if capacity >= AS_GOOD * most)


# What limits


def limiting(scenario: Scenario, system: str, capacity: float) -> Iterator[str]:
    """The resources that, each relieved alone, let a system serve more devices than it does; under the first seed."""
    beyond = replace(scenario, num_devices=max(round(BEYOND * capacity), round(capacity) + 1))
    for name, relieved in RELIEFS.items():
        if simulate(relieved(beyond), SYSTEMS[system], 0).passes():
            yield name


def _more_kv(scenario: Scenario) -> Scenario:
    limits, drafter = scenario.limits, scenario.server_drafter
    return replace(
        scenario,
        limits=replace(limits, kv_capacity_tokens=round(RELIEF * limits.kv_capacity_tokens)),
        server_drafter=drafter and replace(drafter, kv_capacity_tokens=round(RELIEF * drafter.kv_capacity_tokens)),
    )


def _faster_engine(scenario: Scenario) -> Scenario:
    drafter = scenario.server_drafter
    return replace(
        scenario,
        batch_time=Sped(scenario.batch_time, RELIEF),
        server_drafter=drafter and replace(drafter, batch_time=Sped(drafter.batch_time, RELIEF)),
    )


def _larger_batches(scenario: Scenario) -> Scenario:
    limits = scenario.limits
    return replace(scenario, limits=replace(limits, max_batch_requests=round(RELIEF * limits.max_batch_requests)))


def _looser_slo(scenario: Scenario) -> Scenario:
    slos = tuple(
        replace(slo, tokens_per_s=slo.tokens_per_s / RELIEF, first_token_s=slo.first_token_s * RELIEF)
        for slo in scenario.workload.slos
    )
    return replace(scenario, workload=replace(scenario.workload, slos=slos))


RELIEFS: Mapping[str, Callable[[Scenario], Scenario]] = {
    "KV cache": _more_kv,
    "compute": _faster_engine,
    "batch size": _larger_batches,
    "deadline": _looser_slo,
}


@dataclass(frozen=True, slots=True)
class Sped:
    """An engine that is `factor` times as fast as another."""

    batch_time: BatchTime
    factor: float

    def __call__(self, shape: BatchShape) -> float:
        return self.batch_time(shape) / self.factor
