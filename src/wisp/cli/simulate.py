"""`wisp simulate`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import Json


def simulate(
    system: Annotated[list[str] | None, typer.Option(help="System to run (repeatable); default: all.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Data sheet of the server's GPU; default: a100-80gb.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Target model, or the path of a config.json; default: qwen3-32b.")
    ] = None,
    weight_bits: Annotated[int, typer.Option(help="16, 8 or 4.")] = 16,
    profile: Annotated[
        str | None,
        typer.Option(help="Measured batch times: qwen3-32b-rtx-pro-6000, or a file of `wisp calibrate`."),
    ] = None,
    batch_noise: Annotated[
        bool, typer.Option("--batch-noise", help="Batches last as unevenly as the profile's repeats did.")
    ] = False,
    kv_tokens: Annotated[int | None, typer.Option(help="What the KV cache holds; default: what fits.")] = None,
    devices: Annotated[int, typer.Option(help="In a closed fleet: each asks again after a pause.")] = 100,
    think: Annotated[float, typer.Option(help="That pause, mean seconds.")] = 5.0,
    rate: Annotated[float | None, typer.Option(help="Open arrivals instead: sessions per second.")] = None,
    trace_file: Annotated[
        Path | None, typer.Option("--trace", help="Recorded arrivals and lengths instead: Azure CSV, Mooncake JSONL.")
    ] = None,
    prompt_tokens: Annotated[float, typer.Option(help="Mean length of a prompt.")] = 256.0,
    output_tokens: Annotated[float, typer.Option(help="Mean length of an answer.")] = 128.0,
    variation: Annotated[float, typer.Option(help="Of both: standard deviation over mean.")] = 0.8,
    slo: Annotated[str, typer.Option(help="SLO classes in equal shares: tokens per second, with commas.")] = "4",
    first_token: Annotated[float, typer.Option(help="Seconds within which the first token is due.")] = 5.0,
    draft_speed: Annotated[str, typer.Option(help="Tokens per second of a device: LOW-HIGH or one value.")] = "10-50",
    rtt_ms: Annotated[str, typer.Option(help="Round trip, LOW-HIGH or one value.")] = "10-60",
    jitter_ms: Annotated[float, typer.Option(help="Mean of an exponential delay each way.")] = 2.0,
    loss: Annotated[float, typer.Option(help="Probability that a message has to be sent again.")] = 0.0,
    acceptance: Annotated[float, typer.Option(help="Share of drafted tokens that are right.")] = 0.75,
    auc: Annotated[float, typer.Option(help="Of the rejection predictor.")] = 0.85,
    max_batch: Annotated[int, typer.Option(help="Requests in one batch.")] = 256,
    server_draft: Annotated[
        str, typer.Option(help="Drafter beside the target, for the system that drafts on the server.")
    ] = "qwen3-0.6b",
    setting: Annotated[list[str] | None, typer.Option(help="Scheduler setting NAME=VALUE (repeatable).")] = None,
    warmup: Annotated[float, typer.Option(help="Seconds before sessions are judged.")] = 30.0,
    duration: Annotated[float, typer.Option(help="Seconds in which sessions are judged.")] = 60.0,
    seed: Annotated[int, typer.Option(help="The same seed brings the same devices and sessions.")] = 0,
    capacity: Annotated[bool, typer.Option("--capacity", help="Search how many devices each system serves.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds of the search.")] = 3,
    json_output: Json = False,
) -> None:
    """Run the live system's policies in virtual time, on modelled hardware and devices."""
    from wisp.sim.app import SimulationOptions, run_simulation
    from wisp.sim.machine import MachineOptions

    run_simulation(
        SimulationOptions(
            machine=MachineOptions(gpu, model, weight_bits, profile, batch_noise, kv_tokens, server_draft),
            systems=tuple(system or ()),
            devices=devices,
            rate=rate,
            trace=trace_file,
            slo=slo,
            first_token=first_token,
            draft_speed=draft_speed,
            rtt_ms=rtt_ms,
            jitter_ms=jitter_ms,
            loss=loss,
            acceptance=acceptance,
            auc=auc,
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
