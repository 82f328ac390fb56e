"""`wisp calibrate`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import (
    Device,
    Dtype,
    Engine,
    Json,
    KvGib,
    MaxContext,
    MemoryGib,
    Quantization,
    TensorParallel,
    Threads,
)
from wisp.config import ModelConfig


def calibrate(
    model: Annotated[str, typer.Argument(help="Target model: a folder or a hub name.")],
    out: Annotated[Path, typer.Option(help="The file to write, for `wisp serve --profile`.")],
    seconds: Annotated[float, typer.Option(min=1.0, help="Time for the measurements.")] = 60.0,
    shapes: Annotated[int, typer.Option(min=32, help="Batch shapes to measure.")] = 140,
    repeats: Annotated[int, typer.Option(min=2, help="Times that each is measured.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="Predicted against measured times as an SVG file.")] = None,
    name: Annotated[str | None, typer.Option(help="Model name; give what `wisp serve` is given.")] = None,
    engine: Engine = "transformers",
    tensor_parallel: TensorParallel = 1,
    quantization: Quantization = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
    memory_gib: MemoryGib = None,
    kv_gib: KvGib = None,
    max_context: MaxContext = None,
    json_output: Json = False,
) -> None:
    """Measure how long verification batches of MODEL take on this machine."""
    from wisp.calibration.app import CalibrateConfig, run_calibrate
    from wisp.calibration.sweep import SweepSettings

    config = CalibrateConfig(
        target=ModelConfig(
            model,
            name,
            dtype,
            device,
            threads,
            memory_gib,
            kv_gib,
            max_context,
            engine=engine,
            tensor_parallel=tensor_parallel,
            quantization=quantization,
        ),
        out=out,
        sweep=SweepSettings(time_budget=seconds, num_shapes=shapes, repeats=repeats),
        plot=plot,
        json_output=json_output,
    )
    raise typer.Exit(run_calibrate(config))
