"""`wisp simulate`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    context: typer.Context,
    scenario: Annotated[
        Path | None, typer.Argument(help="File that says what the options would; those given override it.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Scenario that ships: paper, quick.", rich_help_panel=RUN)] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="System to run (repeatable), or all; default: five of them.", rich_help_panel=RUN),
    ] = None,
    capacity: Annotated[
        bool,
        typer.Option(
            "--capacity/--no-capacity", help="Search how many devices each system serves.", rich_help_panel=RUN
        ),
    ] = False,
    warmup: Annotated[float, typer.Option(help="Seconds before sessions are judged.", rich_help_panel=RUN)] = 30.0,
    duration: Annotated[float, typer.Option(help="Seconds in which sessions are judged.", rich_help_panel=RUN)] = 60.0,
    drain: Annotated[
        float, typer.Option(help="Seconds after that in which they may still end.", rich_help_panel=RUN)
    ] = 120.0,
    ramp: Annotated[
        float, typer.Option(help="Seconds over which a fleet begins its first sessions.", rich_help_panel=RUN)
    ] = 10.0,
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
            "--batch-noise/--no-batch-noise",
            help="Batches last as unevenly as the profile's repeats did.",
            rich_help_panel=SERVER,
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
            "--swap/--no-swap",
            help="Evicted caches go to the host's memory and come back over PCIe.",
            rich_help_panel=SERVER,
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
    prompt_speed: Annotated[
        float, typer.Option(help="Tokens per second that drafters read.", rich_help_panel=DEVICES)
    ] = 1000.0,
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
    longest_prompt: Annotated[
        int, typer.Option(help="No prompt that is drawn is longer.", rich_help_panel=SESSIONS)
    ] = 8192,
    output_tokens: OutputTokens = 128.0,
    longest_output: Annotated[
        int, typer.Option(help="No answer that is drawn is longer.", rich_help_panel=SESSIONS)
    ] = 2048,
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
    chrome_trace: Annotated[
        Path | None, typer.Option(help="Write what happened when, for ui.perfetto.dev: one system, one run.")
    ] = None,
    trace_devices: Annotated[int, typer.Option(min=0, help="Of the devices, how many are in it.")] = 20,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes for verifiers that share nothing (--placement hash); default: all cores."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Run the live system's policies in virtual time, on modelled hardware and devices."""
    from dataclasses import replace

    from wisp.sim.app import run_simulation
    from wisp.sim.scenario_file import options_of

    options = options_of(scenario, preset, _given(context))
    run_simulation(
        replace(
            options,
            chrome_trace=chrome_trace,
            trace_devices=trace_devices,
            workers=workers,
            json_output=json_output,
        )
    )


NOT_OF_THE_SCENARIO = frozenset({"scenario", "preset", "chrome_trace", "trace_devices", "workers", "json_output"})


def _given(context: typer.Context) -> dict[str, Any]:
    """What the command line says of the scenario, by the options' names."""
    return {
        name.replace("_", "-"): value
        for name, value in context.params.items()
        if name not in NOT_OF_THE_SCENARIO and _is_given(context, name)
    }


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
