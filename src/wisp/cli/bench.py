"""`wisp bench`: its options, turned into what it measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import Json


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="The preset quick: at most 5 minutes on 2 cores.")] = False,
    preset: Annotated[
        str, typer.Option(help="base, quick, or cells: short and long context, slow and fast drafters.")
    ] = "base",
    engine: Annotated[
        str, typer.Option(help="real: the target serves; timed: verdicts replayed, timing emulated (a big GPU's).")
    ] = "real",
    system: Annotated[
        list[str] | None, typer.Option(help="System to compare (repeatable); default: the preset's.")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Folder of the target; default: the demo pair's.")] = None,
    draft: Annotated[Path | None, typer.Option(help="Folder of the draft model.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="To record: as for `wisp trace`; default: the demo's.")] = None,
    trace_file: Annotated[Path | None, typer.Option("--trace", help="Of `wisp trace`, in place of prompts.")] = None,
    workload: Annotated[
        Path | None, typer.Option(help="Lengths of sessions from a public trace: Azure CSV, Mooncake JSONL.")
    ] = None,
    batch_times: Annotated[
        str | None, typer.Option(help="Of `wisp calibrate`, or a shipped profile; default: measured first.")
    ] = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Tokens in the cache of the timed engine.")] = None,
    predictor: Annotated[Path | None, typer.Option(help="Of `wisp train`; default for the demo pair: its own.")] = None,
    real_drafts: Annotated[
        bool, typer.Option(help="Draft with the model, in this process, not from the trace.")
    ] = False,
    slo_class: Annotated[
        list[str] | None, typer.Option(help="NAME=TOKENS_PER_S,FIRST_TOKEN_S (repeatable), in equal shares.")
    ] = None,
    draft_speed: Annotated[
        str | None, typer.Option(help="Tokens per second of a device: LOW-HIGH or one value.")
    ] = None,
    rtt_ms: Annotated[str | None, typer.Option(help="Round trip, LOW-HIGH or one value.")] = None,
    think: Annotated[float, typer.Option(help="Mean pause of a device between two sessions, seconds.")] = 1.0,
    prompt_tokens: Annotated[int | None, typer.Option(help="Make prompts this long; default: as they are.")] = None,
    context_tokens: Annotated[
        int | None, typer.Option(help="Put a context this long before each prompt, one for every 8: conversations.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Output tokens recorded per prompt.")] = None,
    devices: Annotated[int | None, typer.Option(help="First fleet; default: from the batch times.")] = None,
    max_devices: Annotated[int, typer.Option(help="Largest fleet.")] = 512,
    points: Annotated[int | None, typer.Option(help="Fleets tried per system and seed, at most.")] = None,
    resolution: Annotated[float, typer.Option(help="Bounds of the capacity that are close enough, relative.")] = 0.1,
    warmup: Annotated[float | None, typer.Option(help="Seconds of each point that are not judged.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of each point that are.")] = None,
    drain: Annotated[float | None, typer.Option(help="Most seconds for the judged sessions to end.")] = None,
    seed: Annotated[int, typer.Option(help="Of devices and sessions, the same for all systems.")] = 0,
    seeds: Annotated[int | None, typer.Option(help="How many, from that one on.")] = None,
    minutes: Annotated[float | None, typer.Option(help="No point is begun that may end later.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for points, JSON and HTML; a run that was cut off is gone on with.")
    ] = None,
    keep_logs: Annotated[
        bool, typer.Option("--keep-logs", help="Keep the servers' logs of batches there, too.")
    ] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Simulate the same, and show both side by side.")
    ] = False,
    server_log: Annotated[
        Path | None, typer.Option(help="Of --keep-logs: simulated servers take time beside their batches as it says.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Compare systems on a live server with emulated devices: capacity, goodput, latency, waste, cost."""
    from wisp.bench.live.app import run_bench
    from wisp.bench.live.presets import BenchOptions

    options = BenchOptions(
        preset="quick" if quick else preset,
        engine=engine,
        systems=tuple(system or ()),
        target=target,
        draft=draft,
        prompts=prompts,
        trace=trace_file,
        workload=workload,
        batch_times=batch_times,
        kv_tokens=kv_tokens,
        predictor=predictor,
        real_drafts=real_drafts,
        slo_classes=tuple(slo_class or ()),
        draft_speed=draft_speed,
        rtt_ms=rtt_ms,
        think=think,
        prompt_tokens=prompt_tokens,
        context_tokens=context_tokens,
        output_tokens=tokens,
        devices=devices,
        max_devices=max_devices,
        points=points,
        resolution=resolution,
        warmup=warmup,
        duration=duration,
        drain=drain,
        seed=seed,
        seeds=seeds,
        minutes=minutes,
    )
    status = run_bench(
        options, out, json_output=json_output, keep_logs=keep_logs, simulated=simulate, server_log=server_log
    )
    raise typer.Exit(status)
