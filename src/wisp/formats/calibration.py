"""What a calibration measured and fitted, on disk: every batch shape with its repeated times.

A member is [new, cached] or, several of them alike, [new, cached, how many].
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from wisp.errors import FormatError
from wisp.policy.batch_time import BatchShape, BatchTimeModel

FORMAT = "wisp-calibration"
VERSION = 1

Members = tuple[tuple[int, int], ...]
"""New and cached tokens of each."""


@dataclass(frozen=True, slots=True)
class BatchSample:
    """One batch that was measured several times."""

    members: Members
    times: tuple[float, ...]
    """Seconds, one per repeat."""
    cpu_times: tuple[float, ...] = ()
    """Of the same repeats, the processor time of the computing thread; empty where a GPU computes."""
    shape: BatchShape = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", BatchShape.of_members(self.members))

    @property
    def time(self) -> float:
        """The median: what is taken for the truth."""
        return median(self.times)

    @property
    def on_cpu(self) -> BatchSample:
        """The same batch with its processor times for its times."""
        return BatchSample(self.members, self.cpu_times)


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors, as a share of the measured time."""

    mean: float
    p95: float
    bias: float = 0.0
    """Median of predicted over measured, minus 1; above 0: too high."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A target engine's batch times: measured, fitted, judged."""

    model_id: str
    dtype: str
    device: str
    emulated: bool
    samples: tuple[BatchSample, ...]
    model: BatchTimeModel
    held_out: Errors
    """Of a fit to half of the shapes on the other half."""
    repeats: Errors
    """Of single measurements against the median of their own shape: no estimator can do better."""
    held_out_cpu: Errors | None = None
    """Of a fit to processor times, on processor times: the formula's own error, whoever else uses the machine."""
    repeats_cpu: Errors | None = None
    source: str = ""
    """Where the samples come from, and under which licence, if not from `wisp calibrate`."""

    def save(self, path: Path) -> None:
        """Write it as JSON. Raises FormatError."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content["samples"] = [_written(sample) for sample in self.samples]
        try:
            path.write_text(json.dumps(content) + "\n")
        except OSError as error:
            raise FormatError(f"cannot write the calibration {path}: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote. Raises FormatError."""
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise FormatError(f"cannot read the calibration {path}: {error}") from error
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise FormatError(f"{path} is not a {FORMAT} of version {VERSION}: make one with `wisp calibrate`")
        try:
            return _parse(content)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path} is damaged ({error!r}): make a new one with `wisp calibrate`") from error

    def require(self, model_id: str, dtype: str, device: str, *, path: Path) -> None:
        """Raise FormatError unless this was measured with that model, on that device."""
        mine, asked = (self.model_id, self.dtype, self.device), (model_id, dtype, device)
        if mine != asked:
            raise FormatError(
                f"{path} was measured with {' '.join(mine)}, not with {' '.join(asked)}: make one with `wisp calibrate`"
            )


_ADDED_LATER = {"per_batch_of_several_s": 0.0, "few_tokens": 1.0}
"""Parts of the model that files of the first releases lack."""


def _parse(content: dict[str, Any]) -> Calibration:
    given = {"source": "", **content}
    texts = (given["model_id"], given["dtype"], given["device"])
    if not all(isinstance(text, str) for text in (*texts, given["source"])) or not isinstance(given["emulated"], bool):
        raise TypeError("model_id, dtype, device and source are texts, emulated is true or false")
    return Calibration(
        *texts,
        given["emulated"],
        tuple(_sample(sample) for sample in given["samples"]),
        BatchTimeModel(**_numbers({**_ADDED_LATER, **given["model"]}, fields(BatchTimeModel))),
        _errors(given["held_out"]),
        _errors(given["repeats"]),
        None if given.get("held_out_cpu") is None else _errors(given["held_out_cpu"]),
        None if given.get("repeats_cpu") is None else _errors(given["repeats_cpu"]),
        given["source"],
    )


def _errors(content: dict[str, Any]) -> Errors:
    return Errors(**_numbers(content, fields(Errors), signed=True))


def _written(sample: BatchSample) -> dict[str, Any]:
    content = {"members": _grouped(sample.members), "times": sample.times}
    return {**content, "cpu_times": sample.cpu_times} if sample.cpu_times else content


def _grouped(members: Members) -> list[list[int]]:
    groups = [(member, len(list(alike))) for member, alike in groupby(members)]
    return [[*member, count] if count > 1 else [*member] for member, count in groups]


def _sample(content: dict[str, Any]) -> BatchSample:
    members: Members = ()
    for num_new, num_cached, *count in content["members"]:
        (times_alike,) = count or (1,)
        if num_new < 1 or num_cached < 0 or times_alike < 1:
            raise ValueError("a member computes at least one position, and has no fewer cached tokens than none")
        members += ((int(num_new), int(num_cached)),) * int(times_alike)
    times = tuple(_number(time) for time in content["times"])
    cpu_times = tuple(_number(time) for time in content.get("cpu_times", ()))
    if not members or not times or min(times + cpu_times) <= 0.0:
        raise ValueError("a sample has members and positive times")
    return BatchSample(members, times, cpu_times)


def _numbers(content: dict[str, Any], wanted: Any, *, signed: bool = False) -> dict[str, float]:
    return {field.name: _number(content[field.name], signed=signed) for field in wanted}


def _number(value: Any, *, signed: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a number")
    if value < 0 and not signed:
        raise ValueError(f"{value!r} is negative")
    return float(value)
