"""`wisp plan`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import Json
from wisp.cli.simulate import DEVICES, RUN, SERVER, SESSIONS


def plan(
    gpu: Annotated[
        str | None, typer.Option(help="Data sheet of the GPU; default: a100-80gb.", rich_help_panel=SERVER)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Target, or the path of its config.json; default: qwen3-32b.", rich_help_panel=SERVER),
    ] = None,
    weight_bits: Annotated[int, typer.Option(help="16, 8 or 4.", rich_help_panel=SERVER)] = 16,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Measured batch times: a file of `wisp calibrate`, or a shipped one.", rich_help_panel=SERVER
        ),
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="Tokens that the KV cache holds; default: what fits.", rich_help_panel=SERVER)
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Requests in one batch.", rich_help_panel=SERVER)] = 256,
    gpu_price: Annotated[
        float | None, typer.Option(help="Of one GPU and hour, for the cost of a token.", rich_help_panel=SERVER)
    ] = None,
    fleet: Annotated[
        Path | None,
        typer.Option(
            help="JSON file that describes the devices, instead of the options below.", rich_help_panel=DEVICES
        ),
    ] = None,
    draft_speed: Annotated[
        str, typer.Option(help="Drafted tokens per second: LOW-HIGH or one value.", rich_help_panel=DEVICES)
    ] = "10-50",
    rtt_ms: Annotated[str, typer.Option(help="Round trip: LOW-HIGH or one value.", rich_help_panel=DEVICES)] = "10-60",
    acceptance: Annotated[
        float, typer.Option(help="Share of drafted tokens that are right.", rich_help_panel=DEVICES)
    ] = 0.75,
    auc: Annotated[
        float, typer.Option(help="How well they are foreseen: the predictor's AUC.", rich_help_panel=DEVICES)
    ] = 0.85,
    acceptance_trace: Annotated[
        list[Path] | None,
        typer.Option(help="Recorded drafts instead: file of `wisp trace` (repeatable).", rich_help_panel=DEVICES),
    ] = None,
    predictor: Annotated[
        Path | None, typer.Option(help="File of `wisp train` that foresees them.", rich_help_panel=DEVICES)
    ] = None,
    slo: Annotated[
        str, typer.Option(help="Classes in equal shares: tokens per second, with commas.", rich_help_panel=SESSIONS)
    ] = "4",
    first_token: Annotated[
        float, typer.Option(help="Seconds within which the first token is due.", rich_help_panel=SESSIONS)
    ] = 5.0,
    prompt_tokens: Annotated[float, typer.Option(help="Mean length of a prompt.", rich_help_panel=SESSIONS)] = 256.0,
    output_tokens: Annotated[float, typer.Option(help="Mean length of an answer.", rich_help_panel=SESSIONS)] = 128.0,
    lengths: Annotated[
        list[Path] | None,
        typer.Option(
            help="Recorded lengths instead: ShareGPT JSON, Azure CSV, Mooncake JSONL (repeatable).",
            rich_help_panel=SESSIONS,
        ),
    ] = None,
    longest: Annotated[
        int | None, typer.Option(help="Leave out recorded sessions of more tokens.", rich_help_panel=SESSIONS)
    ] = None,
    think: Annotated[
        float, typer.Option(help="Pause of a device between two sessions, mean seconds.", rich_help_panel=SESSIONS)
    ] = 5.0,
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
            gpu_price=gpu_price,
            margin=margin,
            thorough=thorough,
            workers=workers,
        )
    )
