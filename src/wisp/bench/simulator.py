"""How fast the simulator is, beside a bare heapq loop in the same minutes."""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop, heappush

from rich.progress import Progress

from wisp.bench.timing import Ratio, interleave, ratio
from wisp.policy.systems import SYSTEMS
from wisp.sim.hardware import GPUS, MODELS, Roofline
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import simulate

SYSTEM = replace(SYSTEMS["fixed"], max_draft_tokens=4)
HEAP_SIZE = 200


def simulator_ratio(rounds: int, progress: Progress) -> Ratio:
    """Seconds for the events of a run of 100 devices, in units of as many pushes and pops of a heap."""
    scenario = Scenario(Roofline(GPUS["h200"], MODELS["qwen3-8b"]), warmup=2.0, duration=13.0, drain=0.0, ramp=2.0)
    num_events = simulate(scenario, SYSTEM, seed=0).num_events
    run = f"{num_events} events of 100 devices in 15 s"
    alternatives = {
        run: lambda: simulate(scenario, SYSTEM, seed=0),
        "a bare heapq loop": lambda: _bare_loop(num_events),
    }
    times = interleave(alternatives, rounds, progress, "simulator")
    return ratio(times, run, "a bare heapq loop", "simulator")


def _bare_loop(num_events: int) -> None:
    heap = [(0.001 * i, i) for i in range(HEAP_SIZE)]
    for order in range(HEAP_SIZE, HEAP_SIZE + num_events):
        time, _ = heappop(heap)
        heappush(heap, (time + 0.2, order))
