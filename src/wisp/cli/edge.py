"""`wisp edge`: its options, turned into what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wisp.cli.options import Device, Dtype, Json, KvGib, MaxContext, MemoryGib, Threads
from wisp.config import DEFAULT_EDGE_PORT, DEFAULT_SYSTEM, STOP_RULES, SYSTEMS, EdgeConfig, ModelConfig, with_drafting


def edge(
    server: Annotated[str, typer.Option(help="HOST:PORT of the verification server.")],
    draft: Annotated[
        str | None, typer.Option(help="Draft model: a folder or a hub name; default: n-gram lookup.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address of the local OpenAI-compatible endpoint.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port; 0: any free one.")] = DEFAULT_EDGE_PORT,
    draft_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens drafted per round; 0: plain decoding on the server. Default: the system's; a rule's alone: 12, 4 for fixed."
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            help=f"Draft as this system's devices do: {', '.join(SYSTEMS)}. Other options go first. "
            f"Default: {DEFAULT_SYSTEM}, or the rule fixed where only other options are given."
        ),
    ] = None,
    stop_rule: Annotated[
        str | None, typer.Option(help=f"When a draft ends: {', '.join(STOP_RULES)}. Default: the system's.")
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
