"""What `wisp simulate` was told, and the scenario that it describes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from wisp.config import parse_settings
from wisp.errors import ConfigError
from wisp.formats.predictor import TrainedPredictor
from wisp.policy.placement import PLACEMENTS
from wisp.policy.systems import SYSTEMS, System
from wisp.sim.acceptance import Acceptance, AcceptanceModel, StatedConfidence
from wisp.sim.cluster import VerifierLoss
from wisp.sim.machine import Machine, MachineOptions, choose
from wisp.sim.network import Churn
from wisp.sim.recorded import RecordedAcceptance
from wisp.sim.scenario import LIMITS, Fleet, Scenario
from wisp.sim.study.variants import READINGS
from wisp.sim.traces import load_lengths, load_traces
from wisp.sim.workload import Arrivals, Lengths, Spread, TracedSession, Workload
from wisp.types import SLO

ALL = "all"
"""Stands for every row of the table of systems."""


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """What `wisp simulate` was told; ranges are given as `LOW-HIGH` or as one value."""

    machine: MachineOptions = field(default_factory=MachineOptions)
    verifiers: int = 1
    placement: str = "least-loaded"
    lose: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    devices: int = 100
    attempts: int = 3
    disconnects: float = 0.0
    away: float = 10.0
    abandoned: float = 0.0
    rate: float | None = None
    arrival_variation: float = 1.0
    traces: tuple[Path, ...] = ()
    trace_speed: float = 1.0
    lengths: tuple[Path, ...] = ()
    longest: int | None = None
    slo: str = "4"
    first_token: float = 5.0
    draft_speed: str = "10-50"
    prompt_speed: float = 1000.0
    rtt_ms: str = "10-60"
    jitter_ms: float = 2.0
    loss: float = 0.0
    acceptance: float = 0.75
    auc: float = 0.85
    acceptance_traces: tuple[Path, ...] = ()
    predictor: Path | None = None
    prompt_tokens: float = 256.0
    longest_prompt: int = 8192
    output_tokens: float = 128.0
    longest_output: int = 2048
    variation: float = 0.8
    think: float = 5.0
    max_batch: int = 256
    warmup: float = 30.0
    duration: float = 60.0
    drain: float = 120.0
    ramp: float = 10.0
    seed: int = 0
    seeds: int = 3
    capacity: bool = False
    settings: tuple[str, ...] = ()
    workers: int | None = None
    """Processes for verifiers that share nothing; None: one for each core."""
    json_output: bool = False
    chrome_trace: Path | None = None
    """Where to write what happened when, for a trace viewer."""
    trace_devices: int = 20
    """Of the devices, how many are in it."""


def scenario_of(options: SimulationOptions, machine: Machine) -> Scenario:
    """What the options describe, on some machine. Raises ConfigError and FormatError."""
    limits = replace(
        LIMITS,
        kv_capacity_tokens=machine.kv_capacity_tokens,
        swaps=machine.swap_s_per_token is not None,
        max_batch_requests=at_least_1("max-batch", options.max_batch),
    )
    acceptance = _acceptance(options)
    predictor = _predictor(options.predictor, acceptance)
    return Scenario(
        batch_time=machine.batch_time,
        batch_noise=machine.noise,
        overhead=machine.overhead,
        swap_s_per_token=machine.swap_s_per_token,
        server_drafter=machine.server_drafter,
        num_verifiers=options.verifiers,
        placement=choose("placement", options.placement, PLACEMENTS),
        losses=tuple(verifier_loss(text) for text in options.lose),
        attempts=options.attempts,
        num_devices=options.devices,
        fleet=Fleet(
            draft_speed=spread(options.draft_speed),
            prompt_speed=options.prompt_speed,
            rtt=spread(options.rtt_ms, 1e-3),
            jitter=options.jitter_ms / 1e3,
            loss=options.loss,
            churn=Churn(options.disconnects / 60.0, options.away, options.abandoned),
        ),
        workload=_workload(options, acceptance, machine.kv_capacity_tokens),
        predictor=StatedConfidence() if predictor is None else predictor.predictor,
        rejection_threshold=None if predictor is None else predictor.threshold,
        limits=limits,
        scheduler_settings=parse_settings(options.settings),
        warmup=options.warmup,
        duration=options.duration,
        drain=options.drain,
        ramp=options.ramp,
    )


def known_system(name: str) -> System:
    """A row of the table, or a reading of one. Raises ConfigError."""
    return choose("system", name, {**SYSTEMS, **READINGS})


def spread(text: str, unit: float = 1.0) -> Spread:
    """`LOW-HIGH`, or one value."""
    low, _, high = text.partition("-")
    try:
        return Spread(float(low) * unit, float(high or low) * unit)
    except ValueError:
        raise ConfigError(f"a range is LOW-HIGH or one number, not {text!r}") from None


def verifier_loss(text: str) -> VerifierLoss:
    """`VERIFIER@FROM` or `VERIFIER@FROM-TO`, seconds."""
    verifier, _, times = text.partition("@")
    at, _, until = times.partition("-")
    try:
        return VerifierLoss(int(verifier), float(at), float(until or "inf"))
    except ValueError:
        raise ConfigError(f"a loss is VERIFIER@FROM or VERIFIER@FROM-TO, as in 0@40-60, not {text!r}") from None


def _acceptance(options: SimulationOptions) -> Acceptance:
    if options.acceptance_traces:
        return RecordedAcceptance.read(options.acceptance_traces)
    return AcceptanceModel(options.acceptance, options.auc)


def _predictor(path: Path | None, acceptance: Acceptance) -> TrainedPredictor | None:
    if path is None:
        return None
    if not isinstance(acceptance, RecordedAcceptance):
        raise ConfigError(
            "a predictor reads the statistics of recorded drafts: give --acceptance-trace with --predictor"
        )
    trained = TrainedPredictor.load(path)
    acceptance.require(trained, path)
    return trained


def _workload(options: SimulationOptions, acceptance: Acceptance, kv_tokens: int) -> Workload:
    if options.traces and (options.rate is not None or options.lengths):
        raise ConfigError("a trace has its own arrivals and lengths: give it neither --rate nor --lengths")
    trace, lengths = load_traces(options.traces, options.trace_speed), load_lengths(options.lengths)
    return Workload(
        prompt=Lengths(options.prompt_tokens, options.variation, options.longest_prompt),
        output=Lengths(options.output_tokens, options.variation, options.longest_output),
        slos=slo_classes(options.slo, options.first_token),
        think_time=options.think,
        arrivals=None if options.rate is None else Arrivals(options.rate, options.arrival_variation),
        trace=_fitting(trace, options.longest, kv_tokens),
        lengths=_fitting(lengths, options.longest, kv_tokens),
        acceptance=acceptance,
    )


def _fitting(sessions: tuple[TracedSession, ...], longest: int | None, kv_tokens: int) -> tuple[TracedSession, ...]:
    """Those of at most `longest` tokens; all of them have to fit into the KV cache, or would wait for ever."""
    kept = tuple(one for one in sessions if longest is None or one.num_tokens <= longest)
    too_long = sum(one.num_tokens > kv_tokens for one in kept)
    if too_long:
        raise ConfigError(
            f"{too_long} of {len(kept)} recorded sessions need more than the {kv_tokens} tokens of the KV cache: leave "
            "them out with --longest, or take a larger GPU or fewer weight bits"
        )
    if sessions and not kept:
        raise ConfigError(f"no recorded session has at most {longest} tokens")
    return kept


def slo_classes(text: str, first_token: float) -> tuple[SLO, ...]:
    """Speeds in tokens per second, separated by commas."""
    try:
        speeds = [float(speed) for speed in text.split(",")]
    except ValueError:
        raise ConfigError(f"SLO classes are speeds separated by commas, not {text!r}") from None
    if min(speeds) <= 0.0:
        raise ConfigError(f"SLO speeds must be positive, not {text}")
    return tuple(SLO(f"{speed:g}/s", speed, first_token) for speed in speeds)


def at_least_1(name: str, value: int) -> int:
    """The value. Raises ConfigError."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
    return value
