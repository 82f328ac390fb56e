"""The studies that ship, as data: `wisp study NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

from wisp.policy.systems import SYSTEMS, System
from wisp.sim.oracle import ORACLE
from wisp.sim.study import growth
from wisp.sim.study.conditions import CONTEXTS, EDGES, ENGINES, SPEEDS, condition
from wisp.sim.study.model import Cell, Study
from wisp.sim.study.paper import claim_sheet, paper
from wisp.sim.study.sheets import Sheet
from wisp.sim.study.standing import Results

SEEDS = (0, 1, 2)
"""Settings were tuned on seeds from 1000 on."""
MAP_AXES = ("engine", "context", "SLO", "devices")
MAP_EDGES = ("fast, near", "slow, near", "fast, far")
ROWS: Mapping[str, System] = {**SYSTEMS, "oracle": ORACLE}
"""The table of systems, and the oracle, which is none."""
COMPARED = (
    *("centralized", "centralized-slo", "centralized-draft", "sled", "sled-fcfs", "fixed", "wisp", "wisp-plus-edge"),
    *("wisp-plus", "oracle"),
)
EXPECTED: Mapping[tuple[str, str, str], int] = {
    ("fast", "256", "3, 6"): 800,
    ("fast", "256", "12"): 150,
    ("fast", "1024", "3, 6"): 130,
    ("fast", "1024", "12"): 90,
    ("slow", "256", "3, 6"): 150,
    ("slow", "256", "12"): 30,
    ("slow", "1024", "3, 6"): 90,
    ("slow", "1024", "12"): 20,
    ("kv-limited", "256", "3, 6"): 135,
    ("kv-limited", "256", "12"): 60,
    ("kv-limited", "1024", "3, 6"): 40,
    ("kv-limited", "1024", "12"): 20,
    ("batch-capped", "256", "3, 6"): 110,
    ("batch-capped", "256", "12"): 50,
    ("batch-capped", "1024", "3, 6"): 40,
    ("batch-capped", "1024", "12"): 14,
}
"""Devices served, about: where searches start, and how long is watched."""


def systems(names: Sequence[str]) -> Mapping[str, System]:
    """Rows by name."""
    return {name: ROWS[name] for name in names}


def regime_map() -> Study:
    """Every engine, context and SLO, with each of three kinds of devices."""
    return Study(
        "map",
        "The regime map: which system serves most devices, and how WISP+ compares",
        _map_cells(lambda *_: MAP_EDGES),
        systems(COMPARED),
        SEEDS,
        rows=MAP_AXES[:2],
        columns=MAP_AXES[2:],
        reference="centralized-slo",
    )


def half_map() -> Study:
    """Every engine, context and SLO once: devices alternate between drafting fast nearby and slowly or far away."""

    def edges(index: int) -> Sequence[str]:
        engine, context, speed = index // 4, index // 2 % 2, index % 2
        return (MAP_EDGES[0],) if (engine + context + speed) % 2 == 0 else (MAP_EDGES[1 + engine % 2],)

    return Study(
        "map-16",
        "A third of the regime map: which system serves most devices, and how WISP+ compares",
        _map_cells(edges),
        systems(COMPARED),
        SEEDS,
        rows=MAP_AXES[:2],
        columns=MAP_AXES[2:],
        reference="centralized-slo",
    )


def quick() -> Study:
    """One cell of each engine."""
    chosen = {
        ("fast", "1024", "12"),
        ("slow", "256", "3, 6"),
        ("kv-limited", "1024", "3, 6"),
        ("batch-capped", "256", "12"),
    }
    keys = list(EXPECTED)
    return Study(
        "quick",
        "Four cells of the regime map",
        _map_cells(lambda index: MAP_EDGES[:1] if keys[index] in chosen else ()),
        systems(("centralized", "centralized-slo", "centralized-draft", "sled-fcfs", "wisp", "wisp-plus", "oracle")),
        SEEDS,
        rows=MAP_AXES[:2],
        columns=MAP_AXES[2:],
        reference="centralized-slo",
    )


def _map_cells(edges: Callable[[int], Sequence[str]]) -> tuple[Cell, ...]:
    """Cells of the engines, contexts and SLOs with the devices that `edges` gives for each, by number."""
    cells: list[Cell] = []
    for index, key in enumerate(product(ENGINES, CONTEXTS, SPEEDS)):
        engine, context, speeds = key
        first = None
        for edge in edges(index):
            labels = dict(zip(MAP_AXES, (*key, edge), strict=True))
            scenario = condition(ENGINES[engine], EDGES[edge], CONTEXTS[context], SPEEDS[speeds], EXPECTED[key])
            cells.append(Cell(" | ".join(labels.values()), scenario, labels, like=first))
            first = first or cells[-1].name
    return tuple(cells)


PRESETS: Mapping[str, Callable[[], Study]] = {
    "quick": quick,
    "map-16": half_map,
    "map": regime_map,
    "paper": paper,
    "scale": growth.scale,
    "scale-100k": growth.large_scale,
    "overload": growth.overload,
    "loss": growth.loss,
    "sensitivity": growth.sensitivity,
    "bias": growth.bias,
}
MORE_SHEETS: Mapping[str, Callable[[Results], Sheet]] = {"paper": claim_sheet}
"""Tables that only one study has."""
