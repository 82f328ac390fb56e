"""`wisp plan`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import (
    DEVICES,
    RUN,
    SERVER,
    SESSIONS,
    AcceptanceRate,
    AcceptanceTrace,
    Auc,
    DraftSpeed,
    FirstToken,
    Gpu,
    Json,
    KvTokens,
    Longest,
    MaxBatch,
    OutputTokens,
    PromptTokens,
    RttMs,
    SimulatedModel,
    SloSpeeds,
    Think,
    WeightBits,
)


def plan(
    gpu: Gpu = None,
    model: SimulatedModel = None,
    weight_bits: WeightBits = 16,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Measured batch times: a file of `wisp calibrate`, or a shipped one.", rich_help_panel=SERVER
        ),
    ] = None,
    kv_tokens: KvTokens = None,
    max_batch: MaxBatch = 256,
    gpu_price: Annotated[
        float | None, typer.Option(help="Of one GPU and hour, for the cost of a token.", rich_help_panel=SERVER)
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="To be served: how many GPUs that takes.", rich_help_panel=DEVICES)
    ] = None,
    fleet: Annotated[
        Path | None,
        typer.Option(
            help="JSON file that describes the devices, instead of the options below.", rich_help_panel=DEVICES
        ),
    ] = None,
    draft_speed: DraftSpeed = "10-50",
    rtt_ms: RttMs = "10-60",
    acceptance: AcceptanceRate = 0.75,
    auc: Auc = 0.85,
    acceptance_trace: AcceptanceTrace = None,
    predictor: Annotated[
        Path | None, typer.Option(help="File of `wisp train` that foresees them.", rich_help_panel=DEVICES)
    ] = None,
    slo: SloSpeeds = "4",
    first_token: FirstToken = 5.0,
    prompt_tokens: PromptTokens = 256.0,
    output_tokens: OutputTokens = 128.0,
    lengths: Annotated[
        list[Path] | None,
        typer.Option(
            help="Recorded lengths instead: ShareGPT JSON, Azure CSV, Mooncake JSONL (repeatable).",
            rich_help_panel=SESSIONS,
        ),
    ] = None,
    longest: Longest = None,
    think: Think = 5.0,
    margin: Annotated[float, typer.Option(help="Share of the capacity that is to be used.", rich_help_panel=RUN)] = 0.8,
    system: Annotated[
        list[str] | None, typer.Option(help="System to consider (repeatable), simplest first.", rich_help_panel=RUN)
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="More systems, more seeds, longer runs.", rich_help_panel=RUN)
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one for each processor.", rich_help_panel=RUN)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the answer as a page for a browser.")] = None,
    json_output: Json = False,
) -> None:
    """Which system to deploy, how many devices a GPU serves, what it costs, and whether drafting on devices pays."""
    from wisp.sim.machine import MachineOptions
    from wisp.sim.options import SimulationOptions
    from wisp.sim.plan.app import PlanOptions, run

    run(
        PlanOptions(
            SimulationOptions(
                machine=MachineOptions(gpu, model, weight_bits, profile, kv_tokens=kv_tokens),
                systems=tuple(system or ()),
                slo=slo,
                first_token=first_token,
                draft_speed=draft_speed,
                rtt_ms=rtt_ms,
                acceptance=acceptance,
                auc=auc,
                acceptance_traces=tuple(acceptance_trace or ()),
                predictor=predictor,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                lengths=tuple(lengths or ()),
                longest=longest,
                think=think,
                max_batch=max_batch,
                json_output=json_output,
            ),
            fleet=fleet,
            num_devices=devices,
            gpu_price=gpu_price,
            margin=margin,
            thorough=thorough,
            workers=workers,
            html=html,
        )
    )
