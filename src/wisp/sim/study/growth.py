"""Studies of growing fleets, of overload, of what is lost, and of what the results are sensitive to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wisp.policy.placement import PLACEMENTS
from wisp.policy.systems import SYSTEMS, System
from wisp.sim.acceptance import AcceptanceModel
from wisp.sim.cluster import VerifierLoss
from wisp.sim.network import Churn
from wisp.sim.scenario import Scenario
from wisp.sim.study.conditions import CONTEXTS, EDGES, ENGINES, SPEEDS, condition
from wisp.sim.study.model import Cell, Measure, Study
from wisp.sim.study.variants import biased

SEEDS = (0, 1, 2)
PER_VERIFIER = 100
"""Devices: about two thirds of what WISP+ serves there."""
NUM_VERIFIERS = 8
LOST_AT, BACK_AT = 30.0, 40.0
"""Seconds: within the judged time."""


def _base() -> Scenario:
    """The cell of the map in which steps are slow, contexts short and devices fast and near."""
    return condition(ENGINES["slow"], EDGES["fast, near"], CONTEXTS["256"], SPEEDS["3, 6"], 150)


def _systems(*names: str) -> Mapping[str, System]:
    return {name: SYSTEMS[name] for name in names}


def scale() -> Study:
    """The cost of a token from 100 devices on one verifier to 10,000 on 100."""
    return _scale("scale", (1, 10, 100), SEEDS, "centralized-slo", "wisp", "wisp-plus")


def large_scale() -> Study:
    """The same with 100,000 devices on 1,000 verifiers; one seed."""
    return _scale("scale-100k", (1000,), SEEDS[:1], "wisp-plus")


def _scale(name: str, verifiers: tuple[int, ...], seeds: tuple[int, ...], *systems: str) -> Study:
    cells = tuple(
        Cell(f"{PER_VERIFIER * number:,} devices, {number:,} verifiers", _by_hash(number)) for number in verifiers
    )
    caption = f"Growing fleets, {PER_VERIFIER} devices for each verifier on average, placed by hash"
    return Study(name, caption, cells, _systems(*systems), seeds, Measure(searches=False, of_fleet=(1.0,)))


def _cluster(num_verifiers: int) -> Scenario:
    base = replace(_base(), num_devices=PER_VERIFIER * num_verifiers, num_verifiers=num_verifiers)
    return replace(base, duration=15.0)


def _by_hash(num_verifiers: int) -> Scenario:
    """So that each verifier can be simulated by itself."""
    return replace(_cluster(num_verifiers), placement=PLACEMENTS["hash"])


def overload() -> Study:
    """Goodput beyond the capacity: does it hold?"""
    names = ("slow", "kv-limited", "batch-capped")
    expected = {"slow": 150, "kv-limited": 135, "batch-capped": 110}
    cells = tuple(
        Cell(name, condition(ENGINES[name], EDGES["fast, near"], CONTEXTS["256"], SPEEDS["3, 6"], expected[name]))
        for name in names
    )
    systems = _systems("centralized", "centralized-slo", "sled-fcfs", "wisp", "wisp-plus")
    return Study("overload", "At and beyond capacity", cells, systems, SEEDS, Measure(of_capacity=(1.5, 3.0)))


def loss() -> Study:
    """One of eight verifiers dies, for good or for ten seconds, and sessions open again elsewhere; devices vanish.

    At one load: who is away for ten seconds misses tokens, whoever serves, so that no fleet counts as served.
    """
    whole = replace(_cluster(NUM_VERIFIERS), duration=30.0)
    gone = replace(whole, losses=(VerifierLoss(0, LOST_AT),))
    back = replace(whole, losses=(VerifierLoss(0, LOST_AT, BACK_AT),))
    scenarios = {
        "nothing lost": whole,
        "one of 8 lost": gone,
        "one of 8 lost for 10 s": back,
        "one of 8 lost, placed by hash": replace(gone, placement=PLACEMENTS["hash"]),
        "one of 8 lost, two choices": replace(gone, placement=PLACEMENTS["two-choices"]),
        "one of 8 lost for 10 s, placed by hash": replace(back, placement=PLACEMENTS["hash"]),
        "one of 8 lost for 10 s, two choices": replace(back, placement=PLACEMENTS["two-choices"]),
        **{
            f"{often:g} disconnections a minute": replace(whole, fleet=replace(whole.fleet, churn=Churn(often / 60.0)))
            for often in (0.5, 2.0)
        },
    }
    cells = tuple(Cell(name, scenario) for name, scenario in scenarios.items())
    systems = _systems("centralized-slo", "wisp", "wisp-plus")
    return Study(
        "loss",
        "Verifiers that are lost, devices that vanish for 10 s on average",
        cells,
        systems,
        SEEDS,
        Measure(searches=False, of_fleet=(1.0,)),
    )


def sensitivity() -> Study:
    """One condition at a time, away from the base."""
    base = _base()
    scenarios = {
        **{f"acceptance {rate:g}": _with_acceptance(base, AcceptanceModel(rate)) for rate in (0.5, 0.65, 0.85, 0.95)},
        **{f"AUC {auc:g}": _with_acceptance(base, AcceptanceModel(auc=auc)) for auc in (0.55, 0.7, 0.95)},
        "alike neighbours": _with_acceptance(base, AcceptanceModel(persistence=0.7)),
        **{f"jitter {ms} ms": replace(base, fleet=replace(base.fleet, jitter=ms / 1e3)) for ms in (0, 20, 100)},
    }
    varied = (Cell(name, scenario, like="base") for name, scenario in scenarios.items())
    systems = _systems("centralized-slo", "centralized-draft", "wisp", "wisp-plus-edge", "wisp-plus")
    return Study(
        "sensitivity",
        "One thing changed at a time",
        (Cell("base", base), *varied),
        systems,
        SEEDS,
        reference="centralized-slo",
    )


def bias() -> Study:
    """Estimators that are wrong by a constant factor."""
    systems: dict[str, System] = {}
    for name in ("wisp", "wisp-plus"):
        systems[name] = SYSTEMS[name]
        for factor in (0.5, 0.75, 1.25, 1.5):
            systems[f"{name} x {factor:g}"] = biased(name, factor)
    cells = tuple(
        Cell(name, condition(ENGINES[name], EDGES["fast, near"], CONTEXTS["256"], SPEEDS["3, 6"], 140))
        for name in ("slow", "kv-limited")
    )
    return Study("bias", "Batch times estimated wrongly on purpose", cells, systems, SEEDS, reference="wisp-plus")


def _with_acceptance(scenario: Scenario, acceptance: AcceptanceModel) -> Scenario:
    return replace(scenario, workload=replace(scenario.workload, acceptance=acceptance))
