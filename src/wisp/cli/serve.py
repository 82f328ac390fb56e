"""`wisp serve`: its options, turned into what it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import (
    Device,
    Dtype,
    Engine,
    Json,
    KvGib,
    MaxContext,
    MemoryGib,
    Quantization,
    TensorParallel,
    Threads,
)
from wisp.config import (
    DEFAULT_PORT,
    DEFAULT_SYSTEM,
    SYSTEMS,
    ModelConfig,
    SecurityConfig,
    ServerConfig,
    parse_settings,
    parse_slo_classes,
)


def serve(
    model: Annotated[str, typer.Argument(help="Target model: a folder or a hub name.")],
    name: Annotated[
        str | None, typer.Option(help="Model name for clients; default: the hub's, or the folder's.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; off loopback, TLS and tokens are set up.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = DEFAULT_PORT,
    engine: Engine = "transformers",
    tensor_parallel: TensorParallel = 1,
    quantization: Quantization = None,
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
    system: Annotated[str, typer.Option(help=f"Whose scheduler runs: {', '.join(SYSTEMS)}.")] = DEFAULT_SYSTEM,
    setting: Annotated[
        list[str] | None, typer.Option(help="Scheduler setting NAME=VALUE (repeatable): docs/scheduling.md lists them.")
    ] = None,
    slo_class: Annotated[
        list[str] | None,
        typer.Option(help="SLO class NAME=TOKENS_PER_S,FIRST_TOKEN_S (repeatable); default: fast, normal, relaxed."),
    ] = None,
    default_slo: Annotated[str | None, typer.Option(help="Class of sessions that name none.")] = None,
    draft: Annotated[
        str | None,
        typer.Option(help="Draft model beside the target: centralized-draft needs one, wisp-plus makes use of one."),
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
    batch_times: Annotated[
        str | None,
        typer.Option(help="Emulate: batches last as this file of `wisp calibrate`, or shipped profile, says."),
    ] = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Emulate: tokens that the KV cache holds.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics at http://HOST:PORT/metrics; 0: any free port.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address of the metrics; whoever reaches it may read them.")
    ] = "127.0.0.1",
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
        target=ModelConfig(
            model,
            name,
            dtype,
            device,
            threads,
            memory_gib,
            kv_gib,
            max_context,
            batch_invariant,
            engine,
            tensor_parallel,
            quantization,
        ),
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
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        batch_log=batch_log,
    )
    raise typer.Exit(run(config, json_output=json_output))
