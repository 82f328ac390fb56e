"""The machine that a server runs on: how long its batches take, what its memory holds, and the drafter beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wisp.calibration.measured import MeasuredBatchTime, repeat_ratios
from wisp.calibration.overhead import ServerOverhead, fit_overhead
from wisp.calibration.shipped import load_profile
from wisp.errors import ConfigError
from wisp.formats.batch_log import read_batch_log
from wisp.formats.calibration import Calibration
from wisp.policy.batch_time import BatchTime
from wisp.sim.hardware import GPUS, MODELS, ModelShape, Roofline, ServerDrafter, beside

DEFAULT_GPU, DEFAULT_MODEL = "a100-80gb", "qwen3-32b"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """What `wisp simulate` was told of the machine; None: what is known otherwise."""

    gpu: str | None = None
    model: str | None = None
    """A name, with or without its owner, or the path of a config.json."""
    weight_bits: int = 16
    profile: str | None = None
    """Name or path of measured batch times."""
    batch_noise: bool = False
    """Let batches take as unevenly long as the repeats of one measurement did."""
    kv_tokens: int | None = None
    """Tokens that the KV cache holds."""
    swap: bool = False
    """Keep evicted caches in the host's memory, instead of computing them again."""
    server_draft: str = "qwen3-0.6b"
    server_log: Path | None = None
    """Of the batches of a live server on the profile's machine: what it takes beside them is added."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a scenario takes over."""

    caption: str
    """What the batch times are."""
    batch_time: BatchTime
    kv_capacity_tokens: int
    server_drafter: ServerDrafter | None
    """None where nothing is known of the GPU."""
    noise: tuple[float, ...] = ()
    overhead: ServerOverhead | None = None
    swap_s_per_token: float | None = None


def machine_of(options: MachineOptions) -> Machine:
    """What the options describe. Raises ConfigError and FormatError."""
    if options.profile is None:
        if options.batch_noise:
            raise ConfigError("only a measured profile knows how uneven batches are: give --profile with --batch-noise")
        if options.server_log is not None:
            raise ConfigError("a server's log is compared with measured batch times: give --profile with --server-log")
        roofline = _roofline(options, options.gpu or DEFAULT_GPU, options.model or DEFAULT_MODEL)
        name = f"{options.model or DEFAULT_MODEL} with {options.weight_bits}-bit weights"
        return Machine(
            caption=f"a roofline, {name} on {options.gpu or DEFAULT_GPU}",
            batch_time=roofline,
            kv_capacity_tokens=_capacity(options, roofline),
            server_drafter=_drafter(options, roofline),
            swap_s_per_token=_swap(options, roofline),
        )
    profile = load_profile(options.profile)
    gpu = options.gpu or (profile.device if profile.device in GPUS else None)
    model = options.model or (profile.model_id if _without_owner(profile.model_id) in MODELS else None)
    memory = None if gpu is None or model is None else _roofline(options, gpu, model)
    hardware = MeasuredBatchTime(profile.samples)
    overhead = None if options.server_log is None else fit_overhead(read_batch_log(options.server_log), hardware)
    most = hardware.largest
    return Machine(
        f"{'derived' if profile.source else 'measured'} batch times, {profile.model_id} in {profile.dtype} on "
        f"{profile.device}; extrapolated above {most.num_new} positions, {most.num_requests} requests or "
        f"{most.num_cached} cached tokens{'' if overhead is None else f'; the server takes {overhead}'}",
        hardware,
        _capacity(options, memory, profile),
        None if memory is None else _drafter(options, memory),
        _noise(profile) if options.batch_noise else (),
        overhead,
        _swap(options, memory),
    )


def choose(what: str, name: str, known: Mapping[str, T]) -> T:
    """The one of that name. Raises ConfigError that lists them."""
    if name not in known:
        raise ConfigError(f"unknown {what} {name!r}: there are {', '.join(known)}")
    return known[name]


def model_shape(name: str) -> ModelShape:
    """Of the path of a config.json, or of a name, with or without its owner. Raises ConfigError and FormatError."""
    return ModelShape.load(Path(name)) if name.endswith(".json") else choose("model", _without_owner(name), MODELS)


def _without_owner(name: str) -> str:
    """Qwen/Qwen3-32B is qwen3-32b; tuning a model to instructions leaves its shape alone."""
    return name.rpartition("/")[2].lower().removesuffix("-instruct")


def _roofline(options: MachineOptions, gpu: str, model: str) -> Roofline:
    return Roofline(choose("GPU", gpu, GPUS), model_shape(model), options.weight_bits)


def _capacity(options: MachineOptions, memory: Roofline | None, profile: Calibration | None = None) -> int:
    if options.kv_tokens is not None:
        if options.kv_tokens < 1:
            raise ConfigError(f"a KV cache holds at least 1 token, not {options.kv_tokens}")
        return options.kv_tokens
    if memory is not None:
        return memory.kv_capacity_tokens
    assert profile is not None, "without a profile there is a roofline"
    raise ConfigError(
        f"{options.profile} was measured with {profile.model_id} on {profile.device}, whose memory is not known: "
        "say what the KV cache holds with --kv-tokens, or name --gpu and --model"
    )


def _drafter(options: MachineOptions, target: Roofline) -> ServerDrafter:
    return beside(target, model_shape(options.server_draft), options.kv_tokens)


def _swap(options: MachineOptions, memory: Roofline | None) -> float | None:
    if not options.swap:
        return None
    if memory is None:
        raise ConfigError("how fast the host is reached is not known: name --gpu and --model with --swap")
    return memory.swap_s_per_token


def _noise(profile: Calibration) -> tuple[float, ...]:
    ratios = repeat_ratios(profile.samples)
    if not ratios:
        raise ConfigError("the profile holds no three measurements of one batch: there is no noise to draw from")
    return ratios
