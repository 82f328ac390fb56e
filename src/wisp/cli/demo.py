"""`wisp demo`: its options, turned into what it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from wisp.cli.options import Engine, Json


def demo(
    tokens: Annotated[int, typer.Option(help="Tokens per completion.")] = 64,
    draft_tokens: Annotated[int, typer.Option(help="Tokens drafted per round, at most.")] = 4,
    stop_rule: Annotated[
        str, typer.Option(help="When a draft ends earlier: fixed, confidence, predicted, entropy or price.")
    ] = "fixed",
    serve_on: Annotated[bool, typer.Option("--serve", help="Leave it running and print how to talk to it.")] = False,
    engine: Engine = "transformers",
    json_output: Json = False,
) -> None:
    """Show it at work: a server, six emulated devices, and proof that every text is the target's own."""
    from wisp.demo.app import DemoConfig, run_demo

    raise typer.Exit(run_demo(DemoConfig(tokens, draft_tokens, stop_rule, serve_on, json_output, engine)))
