"""A first guess at how many devices a machine serves, from batch times alone: where the search for the capacity starts."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from wisp.policy.batch_time import BatchShape
from wisp.sim.capacity import grid
from wisp.sim.scenario import Scenario

LOAD = 0.8
"""Share of the engine's time that the guess fills."""
CHUNK = 512
"""Prompt tokens in one step."""


def first_guess(scenario: Scenario) -> int:
    """Devices that plain decoding could serve at their speeds, by the engine's time and the KV cache; at least 1."""
    best = 1
    for num_devices in grid():
        if _load(scenario, num_devices) > LOAD or _cached(scenario, num_devices) > scenario.limits.kv_capacity_tokens:
            return best
        best = num_devices
    return best


def cycle_time(scenario: Scenario) -> float:
    """Seconds from one session of a device to its next, if tokens come at the speed of its SLO."""
    return _session_time(scenario) + scenario.workload.think_time


def with_times(scenario: Scenario, num_devices: int, num_judged: int, shortest: float, longest: float) -> Scenario:
    """The scenario with a fleet of that size, watched for as long as it takes to judge so many sessions, about."""
    duration = min(max(num_judged * cycle_time(scenario) / num_devices, shortest), longest)
    return replace(scenario, num_devices=num_devices, duration=duration)


def _load(scenario: Scenario, num_devices: int) -> float:
    """Share of the engine's time: a step per token of the sessions under way, and everybody's prompts."""
    active = _active(scenario, num_devices)
    num_prompt, num_output = _lengths(scenario)
    per_batch = min(active, scenario.limits.max_batch_requests)
    cached = num_prompt + num_output / 2.0
    step = scenario.batch_time(
        BatchShape(round(per_batch), per_batch * cached, round(per_batch * cached), round(per_batch))
    )
    prompt = scenario.batch_time(BatchShape(CHUNK, CHUNK * num_prompt / 2.0, 0, 1)) * num_prompt / CHUNK
    steps_per_s = _speed(scenario) * active / per_batch
    return steps_per_s * step + prompt * num_devices / cycle_time(scenario)


def _cached(scenario: Scenario, num_devices: int) -> float:
    num_prompt, num_output = _lengths(scenario)
    return _active(scenario, num_devices) * (num_prompt + num_output / 2.0)


def _active(scenario: Scenario, num_devices: int) -> float:
    return max(num_devices * _session_time(scenario) / cycle_time(scenario), 1.0)


def _session_time(scenario: Scenario) -> float:
    return _lengths(scenario)[1] / _speed(scenario)


def _speed(scenario: Scenario) -> float:
    return fmean(slo.tokens_per_s for slo in scenario.workload.slos)


def _lengths(scenario: Scenario) -> tuple[float, float]:
    workload = scenario.workload
    if workload.lengths:
        return (
            fmean(one.num_prompt_tokens for one in workload.lengths),
            fmean(one.num_output_tokens for one in workload.lengths),
        )
    return workload.prompt.mean, workload.output.mean
