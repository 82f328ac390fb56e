"""What came out of a calibration: tables for people, one object for machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from wisp.calibration.fit import errors, held_out_half
from wisp.formats.calibration import BatchSample, Calibration, Errors

COEFFICIENTS = {
    "fixed_s": "each batch",
    "per_batch_of_several_s": "... of more than a few positions, more by",
    "per_token_s": "each position",
    "per_token_above_ridge_s": "... above the ridge, more by",
    "per_attended_s": "each position and token it attends to",
    "per_cached_s": "each cached token",
    "per_request_s": "each request",
}
_CHUNK = 16
"""New tokens of a member from which on it counts as a chunk of a prompt."""
REGIONS: dict[str, Callable[[BatchSample], bool]] = {
    "1 to 3 positions": lambda one: one.shape.num_new <= 3,
    "4 to 31 positions": lambda one: 4 <= one.shape.num_new < 32,
    "32 positions and more": lambda one: one.shape.num_new >= 32,
    "with a prompt's chunk": lambda one: max(new for new, _ in one.members) >= _CHUNK,
    "1 to 3 requests": lambda one: len(one.members) <= 3,
    "16 requests and more": lambda one: len(one.members) >= 16,
    "512 cached tokens a request and more": lambda one: one.shape.num_cached >= 512 * len(one.members),
}


def summary(found: Calibration, path: Path) -> dict[str, Any]:
    """What a script wants to know of a calibration; of a CPU, with the errors of its processor times."""
    return {
        "profile": str(path),
        "model": found.model_id,
        "dtype": found.dtype,
        "device": found.device,
        "emulated": found.emulated,
        "shapes": len(found.samples),
        "repeats": len(found.samples[0].times),
        "coefficients": asdict(found.model),
        "held_out": asdict(found.held_out),
        "repeat_to_repeat": asdict(found.repeats),
        "held_out_cpu": None if found.held_out_cpu is None else asdict(found.held_out_cpu),
        "repeat_to_repeat_cpu": None if found.repeats_cpu is None else asdict(found.repeats_cpu),
        "wall_over_cpu": wall_over_cpu(found),
        "held_out_by_region": {name: asdict(error) for name, (_, error) in by_region(found).items()},
    }


def wall_over_cpu(found: Calibration) -> float | None:
    """Median of wall over processor time, 1 on a machine that nobody else uses; None where no processor computes."""
    pairs = [pair for one in found.samples for pair in zip(one.times, one.cpu_times, strict=False)]
    return median(wall / cpu for wall, cpu in pairs) if pairs else None


def by_region(found: Calibration) -> dict[str, tuple[int, Errors]]:
    """Number of shapes and errors in parts of what was held out; a shape may be in several of them."""
    regions = {}
    for name, inside in REGIONS.items():
        chosen = [sample for sample in held_out_half(found.samples) if inside(sample)]
        if chosen:
            regions[name] = (len(chosen), errors(found.model, chosen))
    return regions


def tables(found: Calibration) -> tuple[Table, Table]:
    """The coefficients with their errors, and where the errors are."""
    title = f"{found.model_id}, {found.dtype} on {found.device}: {len(found.samples)} batch shapes, "
    table = Table("a batch takes", "", title=title + f"{len(found.samples[0].times)} times each")
    for name, text in COEFFICIENTS.items():
        table.add_row(text, _seconds(getattr(found.model, name)))
    if found.model.per_batch_of_several_s:
        table.add_row("a few", f"up to {found.model.few_tokens:.0f}")
    if found.model.per_token_above_ridge_s:
        table.add_row("the ridge", f"{found.model.ridge_tokens:.0f} positions")
    table.add_section()
    table.add_row("error on shapes it was not fitted to", _percent(found.held_out))
    table.add_row("error of one measurement (the floor)", _percent(found.repeats))
    if found.held_out_cpu is not None and found.repeats_cpu is not None:
        table.add_row("the same of processor times", _percent(found.held_out_cpu))
        table.add_row("... and their floor", _percent(found.repeats_cpu))
        table.add_row("wall over processor time (1: undisturbed)", f"{wall_over_cpu(found):.2f}")
    parts = Table("shapes it was not fitted to", "shapes", "mean", "p95", "bias")
    for name, (count, error) in by_region(found).items():
        parts.add_row(name, str(count), f"{error.mean:.1%}", f"{error.p95:.1%}", f"{error.bias:+.1%}")
    return table, parts


def _percent(error: Errors) -> str:
    return f"{error.mean:.1%}, p95 {error.p95:.1%}"


def _seconds(value: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1.0:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns" if value else "-"
