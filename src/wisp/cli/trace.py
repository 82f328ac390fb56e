"""`wisp trace`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import Device, Dtype, Json, Threads
from wisp.config import ModelConfig


def trace(
    prompts: Annotated[Path, typer.Argument(help="Prompts: text lines, .jsonl, or a .json list (ShareGPT too).")],
    output: Annotated[Path, typer.Argument(help="Trace file: JSON lines, gzipped if it ends in .gz; gone on with.")],
    target: Annotated[str, typer.Option(help="Target model: a folder or a hub name.")],
    draft: Annotated[str, typer.Option(help="Draft model: a folder or a hub name.")],
    tokens: Annotated[int, typer.Option(help="Output tokens per prompt.")] = 64,
    chain: Annotated[int, typer.Option(help="Tokens drafted from every position.")] = 12,
    rule: Annotated[str, typer.Option(help="Acceptance rule when sampling: coupled or rejection.")] = "coupled",
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Prompt i is generated with seed + i.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Use this many prompts at most.")] = None,
    batch: Annotated[int, typer.Option(help="Positions drafted on together.")] = 64,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
    json_output: Json = False,
) -> None:
    """Record what DRAFT proposes at every position of TARGET's own outputs, and what is right of it."""
    from wisp.training.trace_command import TraceConfig, run_trace

    target_model, draft_model = (ModelConfig(name, None, dtype, device, threads) for name in (target, draft))
    config = TraceConfig(
        prompts, output, target_model, draft_model, rule, temperature, top_p, seed, tokens, chain, batch, limit
    )
    raise typer.Exit(run_trace(config, json_output=json_output))
