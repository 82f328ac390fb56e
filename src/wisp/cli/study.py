"""`wisp study`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import Json


def study(
    preset: Annotated[
        str, typer.Argument(help="quick, map-16, map, paper, overload, scale, scale-100k, loss, sensitivity or bias.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results; points that are there are not run again.")] = Path(
        "studies"
    ),
    workers: Annotated[int, typer.Option(help="Processes; they do not change the results.")] = 1,
    seeds: Annotated[int | None, typer.Option(help="How many, from 0 on; default: the preset's.")] = None,
    system: Annotated[
        list[str] | None, typer.Option(help="Of the preset's systems, only this one (repeatable).")
    ] = None,
    json_output: Json = False,
) -> None:
    """Compare systems over many simulated conditions; a study that is cut off goes on where it stopped."""
    from wisp.sim.study.app import StudyOptions, run

    run(StudyOptions(preset, out, workers, seeds, tuple(system or ()), json_output))
