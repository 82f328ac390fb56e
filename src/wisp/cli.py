"""The `wisp` command: serve, edge, demo, calibrate; each command's module is imported inside it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from wisp import __version__
from wisp.config import (
    DEFAULT_EDGE_PORT,
    DEFAULT_PORT,
    DTYPES,
    STOP_RULES,
    SYSTEMS,
    EdgeConfig,
    ModelConfig,
    SecurityConfig,
    ServerConfig,
    parse_settings,
    parse_slo_classes,
    with_drafting,
)
from wisp.errors import UserError, WispError

app = typer.Typer(
    name="wisp",
    help="Devices draft, one shared server verifies; the output is exactly the target model's.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output: one JSON object per line.")]
Dtype = Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}; auto: float32 on a CPU, the checkpoint's on a GPU.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Threads = Annotated[int, typer.Option(help="CPU threads; more than one pays only on cores that nobody else uses.")]
MemoryGib = Annotated[float | None, typer.Option(help="GiB for weights and KV cache; default: what is free.")]
MaxContext = Annotated[int | None, typer.Option(help="Longest context in tokens; default: the model's own.")]
KvGib = Annotated[float | None, typer.Option(help="GiB for the KV cache; default: derived from the free memory.")]


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Target model: a folder or a hub name.")],
    name: Annotated[
        str | None, typer.Option(help="Model name for clients; default: the hub's, or the folder's.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; off loopback, TLS and tokens are set up.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = DEFAULT_PORT,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
    memory_gib: MemoryGib = None,
    kv_gib: KvGib = None,
    max_context: MaxContext = None,
    batch_invariant: Annotated[
        bool, typer.Option(help="Same bits for any batch: bf16 verification equals bf16 decoding; slower.")
    ] = False,
    max_sessions: Annotated[int, typer.Option(help="Sessions open at once; more are told to come back.")] = 256,
    max_batch_requests: Annotated[int, typer.Option(help="Requests verified in one step.")] = 64,
    max_batch_tokens: Annotated[int, typer.Option(help="Positions computed in one step.")] = 2048,
    max_prefill_tokens: Annotated[int, typer.Option(help="Of those, prompt tokens.")] = 512,
    max_draft_tokens: Annotated[int, typer.Option(help="Longest draft accepted from a device.")] = 32,
    idle_timeout: Annotated[
        float, typer.Option(help="Seconds until a vanished device's sessions are forgotten.")
    ] = 600.0,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that running rounds get after SIGTERM.")] = 30.0,
    system: Annotated[str, typer.Option(help=f"Whose scheduler runs: {', '.join(SYSTEMS)}.")] = "fixed",
    setting: Annotated[
        list[str] | None, typer.Option(help="Scheduler setting NAME=VALUE (repeatable): docs/scheduling.md lists them.")
    ] = None,
    slo_class: Annotated[
        list[str] | None,
        typer.Option(help="SLO class NAME=TOKENS_PER_S,FIRST_TOKEN_S (repeatable); default: fast, normal, relaxed."),
    ] = None,
    default_slo: Annotated[str | None, typer.Option(help="Class of sessions that name none.")] = None,
    draft: Annotated[
        str | None, typer.Option(help="Draft model beside the target, for the system that drafts on the server.")
    ] = None,
    draft_kv_gib: Annotated[float, typer.Option(help="GiB for its KV cache.")] = 1.0,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="From `wisp calibrate`: batch times for the systems that estimate; default: measured at start."
        ),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Measure at the first start, for systems that estimate; otherwise learn from scratch.")
    ] = True,
    recalibrate: Annotated[bool, typer.Option(help="Measure again: the machine has changed.")] = False,
    replay: Annotated[
        Path | None, typer.Option(help="Emulate: verdicts of this trace; MODEL is a folder, no weights are loaded.")
    ] = None,
    batch_times: Annotated[Path | None, typer.Option(help="Emulate: batches last as long as this file says.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Emulate: tokens that the KV cache holds.")] = None,
    batch_log: Annotated[Path | None, typer.Option(help="Write down every batch, as JSON lines.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the private CA and the token live.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Own TLS certificate chain (PEM).")] = None,
    private_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="mTLS: devices must have a certificate of this CA.")] = None,
    tokens_file: Annotated[Path | None, typer.Option(help="One `token [name]` a line; or set WISP_TOKENS.")] = None,
    server_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Further name or address that devices reach this server by (repeatable): for its certificate."
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Plain text off loopback. Anyone on the way reads along.")] = False,
    json_output: Json = False,
) -> None:
    """Verify the drafts of many devices with MODEL."""
    from wisp.server.app import serve as run

    security = SecurityConfig(
        insecure=insecure,
        certificate=certificate,
        private_key=private_key,
        client_ca=client_ca,
        tokens_file=tokens_file,
        server_names=tuple(server_name or ()),
    )
    if state_dir is not None:
        security = replace(security, state_dir=state_dir)
    config = ServerConfig(
        target=ModelConfig(model, name, dtype, device, threads, memory_gib, kv_gib, max_context, batch_invariant),
        host=host,
        port=port,
        security=security,
        max_sessions=max_sessions,
        max_batch_requests=max_batch_requests,
        max_batch_tokens=max_batch_tokens,
        max_prefill_tokens=max_prefill_tokens,
        max_draft_tokens=max_draft_tokens,
        idle_timeout=idle_timeout,
        drain_timeout=drain_timeout,
        system=system,
        draft=None if draft is None else ModelConfig(draft, None, dtype, device, threads, None, draft_kv_gib),
        profile=profile,
        calibrate=calibrate,
        recalibrate=recalibrate,
        scheduler_settings=parse_settings(setting or ()),
        **parse_slo_classes(slo_class or (), default_slo),
        replay=replay,
        batch_times=batch_times,
        kv_tokens=kv_tokens,
        batch_log=batch_log,
    )
    raise typer.Exit(run(config, json_output=json_output))


@app.command()
def edge(
    server: Annotated[str, typer.Option(help="HOST:PORT of the verification server.")],
    draft: Annotated[
        str | None, typer.Option(help="Draft model: a folder or a hub name; default: n-gram lookup.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address of the local OpenAI-compatible endpoint.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port; 0: any free one.")] = DEFAULT_EDGE_PORT,
    draft_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens drafted per round; 0: plain decoding on the server. Default: 4, by a rule 12."),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help=f"Draft as this system's devices do: {', '.join(SYSTEMS)}. Other options go first."),
    ] = None,
    stop_rule: Annotated[
        str | None, typer.Option(help=f"When a draft ends: {', '.join(STOP_RULES)}. Default: fixed.")
    ] = None,
    stop_threshold: Annotated[float | None, typer.Option(help="Of confidence, predicted and entropy.")] = None,
    predictor: Annotated[Path | None, typer.Option(help="What `wisp train` made: for predicted and price.")] = None,
    rule: Annotated[str, typer.Option(help="Acceptance rule when sampling: coupled or rejection.")] = "coupled",
    slo: Annotated[str | None, typer.Option(help="SLO class of requests that name none.")] = None,
    token: Annotated[str | None, typer.Option(envvar="WISP_TOKEN", help="Credential for the server.")] = None,
    ca: Annotated[Path | None, typer.Option(help="CA certificate to trust (PEM).")] = None,
    ca_fingerprint: Annotated[
        str | None, typer.Option(help="SHA-256 of the server's CA, as `wisp serve` prints it.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="mTLS: this device's certificate (PEM).")] = None,
    private_key: Annotated[Path | None, typer.Option(help="mTLS: its private key (PEM).")] = None,
    insecure: Annotated[bool, typer.Option(help="Plain text to a server off loopback.")] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="WISP_API_KEY", help="Asked of clients; default: nobody is.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
    memory_gib: MemoryGib = None,
    kv_gib: KvGib = None,
    max_context: MaxContext = None,
    emulated_draft_ms: Annotated[float, typer.Option(help="Act as a slower device: added per drafted token.")] = 0.0,
    emulated_rtt_ms: Annotated[float, typer.Option(help="Act as a farther device: added round trip.")] = 0.0,
    json_output: Json = False,
) -> None:
    """Draft on this device; offer a local OpenAI-compatible endpoint."""
    from wisp.edge.app import run_edge

    config = EdgeConfig(
        server=server,
        draft=None
        if draft is None
        else ModelConfig(draft, None, dtype, device, threads, memory_gib, kv_gib, max_context),
        host=host,
        port=port,
        predictor=predictor,
        rule=rule,
        token=token,
        ca=ca,
        ca_fingerprint=ca_fingerprint,
        certificate=certificate,
        private_key=private_key,
        insecure=insecure,
        api_key=api_key,
        slo=slo,
        emulated_draft_time=emulated_draft_ms / 1e3,
        emulated_rtt=emulated_rtt_ms / 1e3,
    )
    config = with_drafting(config, system, stop_rule, stop_threshold, draft_tokens)
    raise typer.Exit(run_edge(config, json_output=json_output))


@app.command()
def demo(
    tokens: Annotated[int, typer.Option(help="Tokens per completion.")] = 64,
    draft_tokens: Annotated[int, typer.Option(help="Tokens drafted per round.")] = 4,
    serve_on: Annotated[bool, typer.Option("--serve", help="Leave it running and print how to talk to it.")] = False,
    json_output: Json = False,
) -> None:
    """Show it at work: a server, six emulated devices, and proof that every text is the target's own."""
    from wisp.demo.app import DemoConfig, run_demo

    raise typer.Exit(run_demo(DemoConfig(tokens, draft_tokens, serve_on, json_output)))


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Target model: a folder or a hub name.")],
    out: Annotated[Path, typer.Option(help="The file to write, for `wisp serve --profile`.")],
    seconds: Annotated[float, typer.Option(min=1.0, help="Time for the measurements.")] = 60.0,
    shapes: Annotated[int, typer.Option(min=32, help="Batch shapes to measure.")] = 140,
    repeats: Annotated[int, typer.Option(min=2, help="Times that each is measured.")] = 5,
    name: Annotated[str | None, typer.Option(help="Model name; give what `wisp serve` is given.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 1,
    memory_gib: MemoryGib = None,
    kv_gib: KvGib = None,
    max_context: MaxContext = None,
    json_output: Json = False,
) -> None:
    """Measure how long verification batches of MODEL take on this machine."""
    from wisp.calibration.app import CalibrateConfig, run_calibrate
    from wisp.calibration.sweep import SweepSettings

    config = CalibrateConfig(
        target=ModelConfig(model, name, dtype, device, threads, memory_gib, kv_gib, max_context),
        out=out,
        sweep=SweepSettings(time_budget=seconds, num_shapes=shapes, repeats=repeats),
        json_output=json_output,
    )
    raise typer.Exit(run_calibrate(config))


@app.command()
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


@app.command()
def train(
    traces: Annotated[list[Path], typer.Argument(help="Files of `wisp trace`, all made in the same way.")],
    output: Annotated[Path, typer.Option(help="The predictor's file, for `wisp edge --predictor`.")],
    plot: Annotated[Path | None, typer.Option(help="Reliability and speeds as an SVG file.")] = None,
    hidden: Annotated[list[int] | None, typer.Option(help="Width of a hidden layer (repeatable).")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the first weights.")] = 0,
    json_output: Json = False,
) -> None:
    """Fit the predictor of accepted drafts, and compare stop rules on prompts that it has not seen."""
    from wisp.training.train_command import TrainConfig, run_train

    config = TrainConfig(tuple(traces), output, plot, tuple(hidden or (16, 16)), seed)
    raise typer.Exit(run_train(config, json_output=json_output))


@app.command()
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


if __name__ == "__main__":
    main()
