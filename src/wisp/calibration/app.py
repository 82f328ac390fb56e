"""`wisp calibrate`: measure, fit, write the file, show what came out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from wisp.calibration.fit import fit, repeat_errors
from wisp.calibration.plot import svg
from wisp.calibration.report import summary, tables
from wisp.calibration.sweep import Clocks, Sweep, SweepSettings
from wisp.config import ModelConfig
from wisp.engines.base import TargetEngine
from wisp.errors import FormatError
from wisp.formats.calibration import Calibration


@dataclass(frozen=True, slots=True)
class CalibrateConfig:
    """What `wisp calibrate` runs."""

    target: ModelConfig
    out: Path
    sweep: SweepSettings = field(default_factory=SweepSettings)
    plot: Path | None = None
    """An SVG file of predicted against measured times."""
    json_output: bool = False


def calibrate(
    engine: TargetEngine,
    settings: SweepSettings,
    clocks: Clocks | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Calibration:
    """Measure an idle engine and fit its batch times. Raises FormatError."""
    samples = tuple(Sweep(engine, settings, clocks or Clocks.of(engine), progress).run())
    model, held_out = fit(samples)
    on_cpu = [sample.on_cpu for sample in samples if sample.cpu_times]
    card = engine.card
    return Calibration(
        card.model_id,
        card.dtype,
        card.device,
        card.emulated,
        samples,
        model,
        held_out,
        repeat_errors(samples),
        fit(on_cpu)[1] if on_cpu else None,
        repeat_errors(on_cpu) if on_cpu else None,
    )


def run_calibrate(config: CalibrateConfig) -> int:
    """Measure a model, write the file, show what came out; returns the exit status. Raises UserError."""
    from wisp.engines.loading import load_target

    engine = load_target(config.target)
    try:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("batches", total=1.0)
            found = calibrate(engine, config.sweep, progress=lambda share: bar.update(task, completed=share))
    finally:
        engine.shutdown()
    found.save(config.out)
    if config.plot is not None:
        _write(config.plot, svg(found))
    if config.json_output:
        sys.stdout.write(json.dumps(summary(found, config.out)) + "\n")
    else:
        Console().print(*tables(found), sep="\n")
        Console(stderr=True).print(
            f"Written to {config.out}: wisp serve --system wisp --profile {config.out}", soft_wrap=True
        )
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FormatError(f"cannot write the plot {path}: {error.strerror or error}") from error
