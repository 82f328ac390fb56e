"""`wisp calibrate`: measure, fit, write the file, show what came out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from wisp.calibration.fit import fit, repeat_errors
from wisp.calibration.sweep import Sweep, SweepSettings
from wisp.config import ModelConfig
from wisp.engines.base import TargetEngine
from wisp.formats.calibration import Calibration

COEFFICIENTS = {
    "fixed_s": "each batch",
    "per_token_s": "each position",
    "per_token_above_ridge_s": "... above the ridge, more by",
    "per_attended_s": "each position and token it attends to",
    "per_cached_s": "each cached token",
    "per_request_s": "each request",
}


@dataclass(frozen=True, slots=True)
class CalibrateConfig:
    """What `wisp calibrate` runs."""

    target: ModelConfig
    out: Path
    sweep: SweepSettings = field(default_factory=SweepSettings)
    json_output: bool = False


def calibrate(
    engine: TargetEngine,
    settings: SweepSettings,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda _: None,
) -> Calibration:
    """Measure an idle engine and fit its batch times. Raises FormatError."""
    samples = tuple(Sweep(engine, settings, clock, progress).run())
    model, held_out = fit(samples)
    card = engine.card
    return Calibration(
        card.model_id, card.dtype, card.device, card.emulated, samples, model, held_out, repeat_errors(samples)
    )


def run_calibrate(config: CalibrateConfig) -> int:
    """Measure a model, write the file, show what came out; returns the exit status. Raises UserError."""
    from wisp.engines.packed.loading import LoadOptions
    from wisp.engines.target import TransformersTarget

    engine = TransformersTarget.load(config.target.model, LoadOptions.of(config.target))
    try:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("batches", total=1.0)
            found = calibrate(engine, config.sweep, progress=lambda share: bar.update(task, completed=share))
    finally:
        engine.shutdown()
    found.save(config.out)
    if config.json_output:
        sys.stdout.write(json.dumps(summary(found, config.out)) + "\n")
    else:
        Console().print(_table(found))
        Console(stderr=True).print(
            f"Written to {config.out}: wisp serve --scheduler slo --profile {config.out}", soft_wrap=True
        )
    return 0


def summary(found: Calibration, path: Path) -> dict[str, Any]:
    """What a script wants to know of a calibration."""
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
    }


def _table(found: Calibration) -> Table:
    title = f"{found.model_id}, {found.dtype} on {found.device}: {len(found.samples)} batch shapes, "
    table = Table("a batch takes", "", title=title + f"{len(found.samples[0].times)} times each")
    for name, text in COEFFICIENTS.items():
        table.add_row(text, _seconds(getattr(found.model, name)))
    if found.model.per_token_above_ridge_s:
        table.add_row("the ridge", f"{found.model.ridge_tokens:.0f} positions")
    table.add_section()
    table.add_row("error on shapes it was not fitted to", f"{found.held_out.mean:.1%}, p95 {found.held_out.p95:.1%}")
    table.add_row("error of one measurement (the floor)", f"{found.repeats.mean:.1%}, p95 {found.repeats.p95:.1%}")
    return table


def _seconds(value: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1.0:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns" if value else "-"
