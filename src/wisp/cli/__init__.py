"""The `wisp` command; what a command runs is imported when it is called."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from wisp import __version__
from wisp.cli.bench import bench
from wisp.cli.calibrate import calibrate
from wisp.cli.demo import demo
from wisp.cli.edge import edge
from wisp.cli.plan import plan
from wisp.cli.serve import serve
from wisp.cli.simulate import simulate
from wisp.cli.study import study
from wisp.cli.trace import trace
from wisp.cli.train import train
from wisp.errors import UserError, WispError

app = typer.Typer(
    name="wisp",
    help="Devices draft, one shared server verifies; the output is exactly the target model's.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (serve, edge, demo, calibrate, trace, train, simulate, study, plan, bench):
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wisp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command; the caller's faults end in a message and exit code 2, other failures in exit code 1."""
    try:
        app()
    except UserError as error:
        _fail(error, 2)
    except WispError as error:
        _fail(error, 1)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("wisp"):
            raise
        print(f"wisp: this command needs the package {error.name!r}. {_EXTRAS}", file=sys.stderr)
        sys.exit(2)


_EXTRAS = "From the clone: pip install '.[server]' for wisp serve, '.[edge]' or '.[draft]' for wisp edge, '.[all]'."


def _fail(error: WispError, code: int) -> None:
    print(f"wisp: {error}", file=sys.stderr)
    sys.exit(code)
