"""`wisp train`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import Json


def train(
    traces: Annotated[list[Path], typer.Argument(help="Files of `wisp trace`, all of one pair of models.")],
    output: Annotated[Path, typer.Option(help="The predictor's file, for `wisp edge --predictor`.")],
    plot: Annotated[Path | None, typer.Option(help="Reliability and speeds as an SVG file.")] = None,
    hidden: Annotated[list[int] | None, typer.Option(help="Width of a hidden layer (repeatable).")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the first weights.")] = 0,
    json_output: Json = False,
) -> None:
    """Fit the predictor of accepted drafts, and compare stop rules on prompts that it has not seen."""
    from wisp.training.train_command import TrainConfig, run_train

    config = TrainConfig(tuple(traces), output, plot, tuple(hidden or (16, 16)), seed)
    raise typer.Exit(run_train(config, json_output=json_output))
