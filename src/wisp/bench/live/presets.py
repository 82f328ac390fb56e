"""From the options of `wisp bench` to its settings: presets fill in what was not said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wisp.bench.live.fleet import FleetModel
from wisp.bench.live.point import Timing
from wisp.bench.live.settings import BenchSettings, Cell, Search
from wisp.config import parse_slo_classes
from wisp.demo.pair import DRAFT, PREDICTOR, TARGET
from wisp.errors import ConfigError
from wisp.policy.systems import SYSTEMS
from wisp.sim.hardware import GPUS, Roofline
from wisp.sim.hardware import MODELS as SHAPES
from wisp.sim.options import spread
from wisp.sim.workload import Spread
from wisp.types import SLO

QUICK_SYSTEMS = ("centralized", "centralized-slo", "sled", "wisp", "wisp-plus")
SIX_SYSTEMS = ("centralized", "centralized-slo", "sled", "fixed", "wisp", "wisp-plus")
BIG_GPU = "qwen3-32b-rtx-pro-6000"
"""The shipped batch times of the timed engine."""

RTT = Spread(0.010, 0.060)


@dataclass(frozen=True, slots=True)
class Preset:
    """What holds where the options are silent."""

    systems: tuple[str, ...]
    timing: Timing
    max_points: int
    minutes: float | None
    output_tokens: int = 48
    four_cells: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """The same for an engine."""

    slos: tuple[SLO, ...]
    prompt: int | None
    """Tokens of a prompt; None: as recorded."""
    context: int
    """Tokens before it, where contexts are long."""
    slow: Spread
    fast: Spread
    """Draft speeds, tokens per second: slow ones can still keep up with the fastest class on a server that is idle."""
    batch_times: str | None = None
    kv_tokens: int | None = None


PRESETS: Mapping[str, Preset] = {
    "base": Preset(SIX_SYSTEMS, Timing(3.0, 8.0, 10.0), 8, None),
    "quick": Preset(QUICK_SYSTEMS, Timing(2.0, 5.0, 6.0), 4, 4.7, output_tokens=24),
    "cells": Preset(SIX_SYSTEMS, Timing(5.0, 8.0, 10.0), 4, 58.0, output_tokens=32, four_cells=True),
}


def _engine(name: str) -> Engine:
    """Raises ConfigError."""
    if name == "real":
        slos = (SLO("fast", 12.0, 2.0), SLO("normal", 8.0, 3.0))
        return Engine(slos, None, 1024, Spread(20.0, 40.0), Spread(80.0, 160.0))
    if name == "timed":
        room = Roofline(GPUS["rtx-pro-6000"], SHAPES["qwen3-32b"]).kv_capacity_tokens
        slos = (SLO("fast", 8.0, 3.0), SLO("normal", 4.0, 5.0))
        return Engine(slos, 256, 2048, Spread(10.0, 20.0), Spread(50.0, 100.0), BIG_GPU, room)
    raise ConfigError(f"the engine is real or timed, not {name!r}")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What was said on the command line; None: nothing."""

    preset: str = "base"
    engine: str = "real"
    systems: Sequence[str] = ()
    target: Path | None = None
    draft: Path | None = None
    prompts: Path | None = None
    trace: Path | None = None
    batch_times: str | None = None
    kv_tokens: int | None = None
    predictor: Path | None = None
    workload: Path | None = None
    real_drafts: bool = False
    slo_classes: Sequence[str] = ()
    draft_speed: str | None = None
    rtt_ms: str | None = None
    prompt_tokens: int | None = None
    context_tokens: int | None = None
    output_tokens: int | None = None
    think: float = 1.0
    devices: int | None = None
    max_devices: int = 512
    points: int | None = None
    resolution: float = 0.1
    warmup: float | None = None
    duration: float | None = None
    drain: float | None = None
    seed: int = 0
    seeds: int | None = None
    minutes: float | None = None


def minutes_of(options: BenchOptions) -> float | None:
    """The time limit; None: there is none. Raises ConfigError."""
    limit = _preset(options).minutes if options.minutes is None else options.minutes
    if limit is not None and limit <= 0.0:
        raise ConfigError(f"the time limit must be positive, not {limit} minutes")
    return limit


def settings_of(options: BenchOptions) -> BenchSettings:
    """What the options and their preset describe. Raises ConfigError."""
    preset, engine = _preset(options), _engine(options.engine)
    target, draft = options.target or TARGET, options.draft or DRAFT
    if (options.target is None) != (options.draft is None):
        raise ConfigError("target and draft model go together: give both, or neither for the demo pair")
    systems = tuple(options.systems) or preset.systems
    slos = parse_slo_classes(options.slo_classes, None).get("slo_classes", engine.slos)
    own = options.predictor is None and options.target is None and _predicts(systems)
    timing = preset.timing
    return BenchSettings(
        target=target,
        draft=draft,
        engine=options.engine,
        systems=systems,
        cells=_four_cells(options, engine) if preset.four_cells else (_one_cell(options, engine),),
        slos=slos,
        timing=Timing(
            _or(options.warmup, timing.warmup), _or(options.duration, timing.duration), _or(options.drain, timing.drain)
        ),
        search=Search(options.devices, options.max_devices, options.resolution, options.points or preset.max_points),
        kv_tokens=options.kv_tokens or engine.kv_tokens,
        seed=options.seed,
        num_seeds=options.seeds or 1,
        output_tokens=options.output_tokens or preset.output_tokens,
        prompts=options.prompts,
        trace=options.trace,
        batch_times=options.batch_times or engine.batch_times,
        predictor=PREDICTOR if own else options.predictor,
        workload=options.workload,
        real_drafts=options.real_drafts,
    )


def _preset(options: BenchOptions) -> Preset:
    if options.preset not in PRESETS:
        raise ConfigError(f"unknown preset {options.preset!r}: there are {', '.join(PRESETS)}")
    return PRESETS[options.preset]


def _predicts(systems: Sequence[str]) -> bool:
    """Whether the stop rule of some system asks a predictor, where there is one."""
    return any(SYSTEMS[name].stop_rule in ("predicted", "price") for name in systems if name in SYSTEMS)


def _one_cell(options: BenchOptions, engine: Engine) -> Cell:
    speed = Spread(engine.slow.low, engine.fast.low) if options.draft_speed is None else spread(options.draft_speed)
    return Cell("base", _fleet(options, speed), options.prompt_tokens or engine.prompt, options.context_tokens)


def _four_cells(options: BenchOptions, engine: Engine) -> tuple[Cell, ...]:
    if any(given is not None for given in (options.draft_speed, options.prompt_tokens, options.context_tokens)):
        raise ConfigError("the four cells have their own lengths and draft speeds: leave yours out")
    return tuple(
        Cell(f"{length} context, {speed} drafters", _fleet(options, speeds), engine.prompt, num_tokens)
        for length, num_tokens in (("short", None), ("long", engine.context))
        for speed, speeds in (("slow", engine.slow), ("fast", engine.fast))
    )


def _fleet(options: BenchOptions, speed: Spread) -> FleetModel:
    rtt = RTT if options.rtt_ms is None else spread(options.rtt_ms, 1e-3)
    return FleetModel(speed, rtt, think_time=options.think)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
