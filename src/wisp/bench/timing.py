"""Side-by-side timing: alternatives take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from rich.progress import Progress


@dataclass(frozen=True, slots=True)
class Ratio:
    """One line of the report: a time over a reference time, both medians in seconds."""

    name: str
    reference: str
    time: float
    reference_time: float
    spread: float
    """Half the distance between the 25th and the 75th percentile of the ratio, over the rounds."""

    @property
    def ratio(self) -> float:
        return self.time / self.reference_time


def interleave(
    alternatives: Mapping[str, Callable[[], object]], rounds: int, progress: Progress, label: str
) -> dict[str, list[float]]:
    """Wall times of each alternative, taking turns `rounds` times after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for index in progress.track(range(rounds + 1), description=label):
        for name, run in alternatives.items():
            started = time.perf_counter()
            run()
            if index:
                times[name].append(time.perf_counter() - started)
    return times


def ratio(times: Mapping[str, list[float]], name: str, reference: str, label: str) -> Ratio:
    """How long `name` takes in units of `reference`, from turns that stood side by side."""
    each = sorted(a / b for a, b in zip(times[name], times[reference], strict=True))
    quarter = len(each) // 4
    return Ratio(
        f"{label}: {name}",
        reference,
        median(times[name]),
        median(times[reference]),
        (each[-1 - quarter] - each[quarter]) / 2,
    )


def processor_time(pid: int) -> float:
    """Seconds of processor that all threads of a process have used so far; on Linux only."""
    return time.clock_gettime((~pid << 3) | 2)  # what the C library's clock_getcpuclockid returns
