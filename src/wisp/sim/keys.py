"""What `wisp simulate` can be told, by name, and which values are possible.

A key of a scenario file is an option without its dashes, a table of the file a panel of the command's help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from wisp.calibration import shipped
from wisp.config import parse_settings
from wisp.errors import ConfigError
from wisp.policy.placement import PLACEMENTS
from wisp.policy.slo_aware import SLOAwareSettings
from wisp.sim.acceptance import AcceptanceModel
from wisp.sim.hardware import GPUS
from wisp.sim.machine import choose, model_shape
from wisp.sim.network import Churn, LinkModel
from wisp.sim.options import ALL, at_least_1, known_system, slo_classes, spread, verifier_loss
from wisp.sim.scenario import Fleet
from wisp.sim.workload import Arrivals, Lengths

Reads = Callable[[Any, Path], Any]
"""A value of TOML to the options' own, paths taken from a folder. Raises ConfigError."""
Checks = Callable[[Any], object]
"""Whether one of the options' own values is possible. Raises ConfigError."""


@dataclass(frozen=True, slots=True)
class Key:
    """One thing that can be said."""

    field: str
    """Of SimulationOptions, or of MachineOptions."""
    read: Reads
    check: Checks


# What a value of TOML has to be


def _whole(value: Any, _: Path) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ConfigError(f"a whole number is wanted, not {value!r}")


def _number(value: Any, _: Path) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return float(value)
    raise ConfigError(f"a number is wanted, not {value!r}")


def _flag(value: Any, _: Path) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(f"true or false is wanted, not {value!r}")


def _text(value: Any, _: Path) -> str:
    if isinstance(value, str):
        return value
    raise ConfigError(f"a text in quotes is wanted, not {value!r}")


def _path(value: Any, folder: Path) -> Path:
    return folder / _text(value, folder)


def _number_or_text(value: Any, folder: Path) -> str:
    return value if isinstance(value, str) else f"{_number(value, folder):g}"


def _speeds(value: Any, folder: Path) -> str:
    """One, or several in a list, or as the option has them."""
    return ",".join(_number_or_text(one, folder) for one in (value if isinstance(value, list) else [value]))


def _all_of(read: Reads) -> Reads:
    """One, or several in a list."""
    return lambda value, folder: tuple(read(one, folder) for one in (value if isinstance(value, list) else [value]))


def _settings(value: Any, folder: Path) -> tuple[str, ...]:
    if isinstance(value, dict):
        return tuple(f"{name}={_number(number, folder)!r}" for name, number in value.items())
    raise ConfigError(f"a table of NAME = NUMBER is wanted, not {value!r}")


def _profile(value: Any, folder: Path) -> str:
    return value if value in shipped.names() else str(_path(value, folder))


def _model(value: Any, folder: Path) -> str:
    return str(folder / value) if _text(value, folder).endswith(".json") else str(value)


# What it may be


def _anything(_: Any) -> None:
    pass


def _at_least_0(value: float) -> None:
    if value < 0:
        raise ConfigError(f"it must not be negative, not {value}")


def _above_0(value: float) -> None:
    if value <= 0:
        raise ConfigError(f"it must be positive, not {value}")


def _at_least_1(value: int) -> None:
    at_least_1("it", value)


def _one_of(what: str, known: Mapping[str, object]) -> Checks:
    return lambda value: choose(what, value, known)


def _weight_bits(value: int) -> None:
    if value not in (4, 8, 16):
        raise ConfigError(f"weights have 4, 8 or 16 bits, not {value}")


def _each(check: Checks) -> Checks:
    def all_pass(values: Iterable[Any]) -> None:
        for value in values:
            check(value)

    return all_pass


def _known_settings(texts: Iterable[str]) -> None:
    known = {one.name: None for one in fields(SLOAwareSettings)}
    for name in parse_settings(tuple(texts)):
        choose("scheduler setting", name, known)


def _system(name: str) -> None:
    if name != ALL:
        known_system(name)


KEYS: Mapping[str, Mapping[str, Key]] = {
    "server": {
        "gpu": Key("gpu", _text, _one_of("GPU", GPUS)),
        "model": Key("model", _model, model_shape),
        "weight-bits": Key("weight_bits", _whole, _weight_bits),
        "profile": Key("profile", _profile, _anything),
        "batch-noise": Key("batch_noise", _flag, _anything),
        "server-log": Key("server_log", _path, _anything),
        "kv-tokens": Key("kv_tokens", _whole, _at_least_1),
        "swap": Key("swap", _flag, _anything),
        "verifiers": Key("verifiers", _whole, _at_least_1),
        "placement": Key("placement", _text, _one_of("placement", PLACEMENTS)),
        "lose": Key("lose", _all_of(_text), _each(verifier_loss)),
        "max-batch": Key("max_batch", _whole, _at_least_1),
        "server-draft": Key("server_draft", _text, model_shape),
        "setting": Key("settings", _settings, _known_settings),
    },
    "devices": {
        "devices": Key("devices", _whole, _at_least_1),
        "draft-speed": Key("draft_speed", _number_or_text, lambda text: Fleet(spread(text))),
        "prompt-speed": Key("prompt_speed", _number, lambda speed: Fleet(prompt_speed=speed)),
        "acceptance": Key("acceptance", _number, lambda rate: AcceptanceModel(rate=rate)),
        "auc": Key("auc", _number, lambda auc: AcceptanceModel(auc=auc)),
        "acceptance-trace": Key("acceptance_traces", _all_of(_path), _anything),
        "predictor": Key("predictor", _path, _anything),
        "rtt-ms": Key("rtt_ms", _number_or_text, spread),
        "jitter-ms": Key("jitter_ms", _number, _at_least_0),
        "loss": Key("loss", _number, lambda loss: LinkModel(loss=loss)),
        "attempts": Key("attempts", _whole, _at_least_1),
        "disconnects": Key("disconnects", _number, _at_least_0),
        "away": Key("away", _number, _at_least_0),
        "abandoned": Key("abandoned", _number, lambda share: Churn(abandoned=share)),
    },
    "sessions": {
        "slo": Key("slo", _speeds, lambda text: slo_classes(text, 1.0)),
        "first-token": Key("first_token", _number, _above_0),
        "prompt-tokens": Key("prompt_tokens", _number, Lengths),
        "longest-prompt": Key("longest_prompt", _whole, _at_least_1),
        "output-tokens": Key("output_tokens", _number, Lengths),
        "longest-output": Key("longest_output", _whole, _at_least_1),
        "variation": Key("variation", _number, lambda variation: Lengths(1.0, variation)),
        "think": Key("think", _number, _at_least_0),
        "rate": Key("rate", _number, Arrivals),
        "arrival-variation": Key("arrival_variation", _number, lambda variation: Arrivals(1.0, variation)),
        "trace": Key("traces", _all_of(_path), _anything),
        "trace-speed": Key("trace_speed", _number, _above_0),
        "lengths": Key("lengths", _all_of(_path), _anything),
        "longest": Key("longest", _whole, _at_least_1),
    },
    "run": {
        "system": Key("systems", _all_of(_text), _each(_system)),
        "capacity": Key("capacity", _flag, _anything),
        "warmup": Key("warmup", _number, _at_least_0),
        "duration": Key("duration", _number, _above_0),
        "drain": Key("drain", _number, _at_least_0),
        "ramp": Key("ramp", _number, _at_least_0),
        "seed": Key("seed", _whole, _at_least_0),
        "seeds": Key("seeds", _whole, _at_least_1),
    },
}
"""By table and name."""
BY_NAME: Mapping[str, Key] = {name: key for table in KEYS.values() for name, key in table.items()}
