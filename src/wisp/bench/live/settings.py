"""What `wisp bench` is told: systems, cells, load, times; frozen, validated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wisp.bench.live.fleet import FleetModel
from wisp.bench.live.point import Timing
from wisp.bench.live.search import Tried, next_size
from wisp.errors import ConfigError
from wisp.policy.systems import SYSTEMS, Drafts
from wisp.types import SLO

ENGINES = ("real", "timed")
QUESTIONS = 8
"""Prompts that share a context, where there are contexts."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting in which all systems are compared."""

    name: str
    fleet: FleetModel
    prompt_tokens: int | None = None
    """Prompts are made this long; None: as they are."""
    context_tokens: int | None = None
    """Before each prompt, the same for `QUESTIONS` of them, which a device asks one after the other; None: nothing."""

    @property
    def questions(self) -> int:
        """Prompts in a row that share their beginning."""
        return 1 if self.context_tokens is None else QUESTIONS


@dataclass(frozen=True, slots=True)
class Search:
    """How the capacity is looked for."""

    start: int | None = None
    """Devices that every system is tried with first; None: well within what the batch times promise plain decoding."""
    largest: int = 512
    resolution: float = 0.1
    """Bisection ends when the bounds are this close, as a share of the lower one."""
    max_points: int = 8
    """Sizes tried per system and seed."""
    level: float = 0.95
    """Attainment to be reached."""

    def __post_init__(self) -> None:
        if self.start is not None and not 1 <= self.start <= self.largest:
            raise ConfigError(f"the first fleet has 1 to {self.largest} devices, not {self.start}")
        if self.max_points < 1 or not 0.0 < self.level <= 1.0:
            raise ConfigError("a search tries at least one size, and its level lies above 0 and at most at 1")

    def next_size(self, tried: Sequence[Tried], first: int) -> int | None:
        """The fleet to try next, `first` where there was none; None: the search is over."""
        if len(tried) >= self.max_points:
            return None
        return next_size(tried, first, self.largest, self.resolution)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Everything that decides what is measured: a results file is gone on with only under equal settings."""

    target: Path
    draft: Path
    engine: str
    """real, or timed: verdicts replayed, timing emulated."""
    systems: tuple[str, ...]
    cells: tuple[Cell, ...]
    slos: tuple[SLO, ...]
    timing: Timing
    search: Search
    kv_tokens: int | None = None
    """Of the timed engine's cache; None: no limit."""
    seed: int = 0
    num_seeds: int = 1
    output_tokens: int = 48
    """Recorded per prompt, where the trace is made here."""
    num_prompts: int = 24
    """The same."""
    temperature: float = 0.8
    """The same; 0: greedy."""
    prompts: Path | None = None
    """None: the demo pair's held-out prompts."""
    trace: Path | None = None
    """Of `wisp trace`; None: one is recorded first."""
    batch_times: str | None = None
    """A file of `wisp calibrate`, or a shipped profile; None: measured first."""
    predictor: Path | None = None
    """Of `wisp train`, for the rules that ask one."""
    workload: Path | None = None
    """Public trace whose lengths are used: Azure CSV, Mooncake JSONL."""
    real_drafts: bool = False
    """The draft model drafts, in this process, instead of the trace."""

    @property
    def need_drafter(self) -> list[str]:
        """Systems that need a drafter beside the target; where there are any, it is there for whoever can use it."""
        return [name for name in self.systems if SYSTEMS[name].drafts is Drafts.ON_SERVER]

    def __post_init__(self) -> None:
        for name in self.systems:
            _require(name in SYSTEMS, f"unknown system {name!r}: there are {', '.join(SYSTEMS)}")
        _require(bool(self.systems), "name at least one system")
        _require(len(set(self.systems)) == len(self.systems), "every system is named once")
        _require(self.engine in ENGINES, f"the engine is {' or '.join(ENGINES)}, not {self.engine!r}")
        _require(self.num_seeds >= 1, f"there is at least one seed, not {self.num_seeds}")
        beside = self.need_drafter
        _require(self.engine == "real" or not beside, f"{', '.join(beside)}: the timed engine has no drafter beside it")
        timed = self.engine != "timed" or self.batch_times is not None
        _require(
            timed, "the timed engine needs batch times (--batch-times): a file of `wisp calibrate`, or a shipped name"
        )
        _require(not (self.real_drafts and self.engine == "timed"), "the timed engine replays: it takes no real drafts")
        contexts = any(cell.context_tokens is not None for cell in self.cells)
        _require(
            self.workload is None or not contexts, "a workload's lengths choose prompts freely: leave contexts out"
        )
        unguided = [name for name in self.systems if SYSTEMS[name].stop_rule == "predicted" and self.predictor is None]
        _require(not unguided, f"{', '.join(unguided)}: the stop rule needs a predictor (--predictor, of `wisp train`)")

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return content


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
