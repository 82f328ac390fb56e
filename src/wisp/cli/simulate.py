"""`wisp simulate`: its options, turned into what it runs."""

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


def simulate(
    system: Annotated[
        list[str] | None, typer.Option(help="System to run (repeatable); default: all.", rich_help_panel=RUN)
    ] = None,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="Search how many devices each system serves.", rich_help_panel=RUN)
    ] = False,
    warmup: Annotated[float, typer.Option(help="Seconds before sessions are judged.", rich_help_panel=RUN)] = 30.0,
    duration: Annotated[float, typer.Option(help="Seconds in which sessions are judged.", rich_help_panel=RUN)] = 60.0,
    seed: Annotated[
        int, typer.Option(help="The same seed brings the same devices and sessions.", rich_help_panel=RUN)
    ] = 0,
    seeds: Annotated[int, typer.Option(help="Seeds of the search for the capacity.", rich_help_panel=RUN)] = 3,
    gpu: Gpu = None,
    model: SimulatedModel = None,
    weight_bits: WeightBits = 16,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Measured batch times: qwen3-32b-rtx-pro-6000, or a file of `wisp calibrate`.", rich_help_panel=SERVER
        ),
    ] = None,
    batch_noise: Annotated[
        bool,
        typer.Option(
            "--batch-noise", help="Batches last as unevenly as the profile's repeats did.", rich_help_panel=SERVER
        ),
    ] = False,
    server_log: Annotated[
        Path | None,
        typer.Option(
            help="Log of a live server (wisp serve --batch-log): the time it takes beside the profile's batches is added.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    kv_tokens: KvTokens = None,
    swap: Annotated[
        bool,
        typer.Option(
            "--swap", help="Evicted caches go to the host's memory and come back over PCIe.", rich_help_panel=SERVER
        ),
    ] = False,
    verifiers: Annotated[
        int, typer.Option(help="Servers behind one address, each with such a GPU.", rich_help_panel=SERVER)
    ] = 1,
    placement: Annotated[
        str,
        typer.Option(help="Of sessions on them: least-loaded, hash or two-choices.", rich_help_panel=SERVER),
    ] = "least-loaded",
    lose: Annotated[
        list[str] | None,
        typer.Option(help="Server lost: NUMBER@FROM or NUMBER@FROM-TO, seconds (repeatable).", rich_help_panel=SERVER),
    ] = None,
    max_batch: MaxBatch = 256,
    server_draft: Annotated[
        str,
        typer.Option(help="Drafter beside the target, for systems that draft on the server.", rich_help_panel=SERVER),
    ] = "qwen3-0.6b",
    setting: Annotated[
        list[str] | None, typer.Option(help="Scheduler setting NAME=VALUE (repeatable).", rich_help_panel=SERVER)
    ] = None,
    devices: Annotated[
        int, typer.Option(help="In a closed fleet: each asks again after a pause.", rich_help_panel=DEVICES)
    ] = 100,
    draft_speed: DraftSpeed = "10-50",
    acceptance: AcceptanceRate = 0.75,
    auc: Auc = 0.85,
    acceptance_trace: AcceptanceTrace = None,
    predictor: Annotated[
        Path | None,
        typer.Option(
            help="File of `wisp train` that foresees them; default: the drafter's confidence.", rich_help_panel=DEVICES
        ),
    ] = None,
    rtt_ms: RttMs = "10-60",
    jitter_ms: Annotated[
        float, typer.Option(help="Mean of an exponential delay each way.", rich_help_panel=DEVICES)
    ] = 2.0,
    loss: Annotated[
        float, typer.Option(help="Probability that a message has to be sent again.", rich_help_panel=DEVICES)
    ] = 0.0,
    attempts: Annotated[
        int, typer.Option(help="Times that a refused session is asked for.", rich_help_panel=DEVICES)
    ] = 3,
    disconnects: Annotated[
        float, typer.Option(help="Times a minute that a device vanishes in a session.", rich_help_panel=DEVICES)
    ] = 0.0,
    away: Annotated[float, typer.Option(help="Mean seconds until it is back.", rich_help_panel=DEVICES)] = 10.0,
    abandoned: Annotated[
        float, typer.Option(help="Share of disconnections that end the session.", rich_help_panel=DEVICES)
    ] = 0.0,
    slo: SloSpeeds = "4",
    first_token: FirstToken = 5.0,
    prompt_tokens: PromptTokens = 256.0,
    output_tokens: OutputTokens = 128.0,
    variation: Annotated[
        float, typer.Option(help="Of both lengths: standard deviation over mean.", rich_help_panel=SESSIONS)
    ] = 0.8,
    think: Think = 5.0,
    rate: Annotated[
        float | None,
        typer.Option(help="Open arrivals instead of a fleet: sessions per second.", rich_help_panel=SESSIONS),
    ] = None,
    arrival_variation: Annotated[
        float,
        typer.Option(
            help="Of the gaps between them: standard deviation over mean; 1: Poisson.", rich_help_panel=SESSIONS
        ),
    ] = 1.0,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            help="Recorded arrivals and lengths: Azure CSV, Mooncake JSONL (repeatable: at once).",
            rich_help_panel=SESSIONS,
        ),
    ] = None,
    trace_speed: Annotated[
        float, typer.Option(help="How many times as fast they arrive.", rich_help_panel=SESSIONS)
    ] = 1.0,
    lengths: Annotated[
        list[Path] | None,
        typer.Option(
            help="Recorded lengths alone, drawn from: ShareGPT JSON, or a trace (repeatable).", rich_help_panel=SESSIONS
        ),
    ] = None,
    longest: Longest = None,
    json_output: Json = False,
) -> None:
    """Run the live system's policies in virtual time, on modelled hardware and devices."""
    from wisp.sim.app import run_simulation
    from wisp.sim.machine import MachineOptions
    from wisp.sim.options import SimulationOptions

    run_simulation(
        SimulationOptions(
            machine=MachineOptions(
                gpu, model, weight_bits, profile, batch_noise, kv_tokens, swap, server_draft, server_log
            ),
            verifiers=verifiers,
            placement=placement,
            lose=tuple(lose or ()),
            systems=tuple(system or ()),
            devices=devices,
            attempts=attempts,
            disconnects=disconnects,
            away=away,
            abandoned=abandoned,
            rate=rate,
            arrival_variation=arrival_variation,
            traces=tuple(trace or ()),
            trace_speed=trace_speed,
            lengths=tuple(lengths or ()),
            longest=longest,
            slo=slo,
            first_token=first_token,
            draft_speed=draft_speed,
            rtt_ms=rtt_ms,
            jitter_ms=jitter_ms,
            loss=loss,
            acceptance=acceptance,
            auc=auc,
            acceptance_traces=tuple(acceptance_trace or ()),
            predictor=predictor,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            variation=variation,
            think=think,
            max_batch=max_batch,
            settings=tuple(setting or ()),
            warmup=warmup,
            duration=duration,
            seed=seed,
            seeds=seeds,
            capacity=capacity,
            json_output=json_output,
        )
    )
