"""Assembles the server from its parts, runs it, and stops it without losing a round."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from wisp.config import ServerConfig
from wisp.engines.base import ModelCard, TargetEngine
from wisp.errors import ConfigError
from wisp.logs import log_to_stderr, logger
from wisp.policy.scheduler import FCFSScheduler, Scheduler
from wisp.policy.systems import estimator_of
from wisp.protocol import MAX_FRAME_BYTES
from wisp.protocol import wisp_pb2 as pb
from wisp.server.batch_log import batch_log
from wisp.server.emulated import emulated_target
from wisp.server.hello import MAX_SESSIONS_PER_STREAM, server_hello
from wisp.server.loop import BatchRecord, EngineThread, VerificationLoop
from wisp.server.registry import RegistryLimits, SessionRegistry
from wisp.server.scheduling import build_scheduler, checked_system, scheduler_limits
from wisp.server.security import Protection, edge_command, protect, reachable
from wisp.server.service import VerifierService

if TYPE_CHECKING:
    from wisp.server.telemetry import MetricsEndpoint

log = logger(__name__)

_HEALTH: Any = health  # its asyncio half has no type hints
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Verifier"].full_name
GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES + 1024),  # so that a slightly larger one gets an Error frame
    ("grpc.max_send_message_length", MAX_FRAME_BYTES + 1024),
    ("grpc.so_reuseport", 0),  # a second server on this port must fail, not share it
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)
SWEEP_PERIOD = 5.0
"""Seconds between two looks for sessions whose device did not come back."""
DRAIN_POLL = 0.02
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def build_engine(config: ServerConfig) -> TargetEngine:
    """Load the target model, or emulate it. Raises ModelError, ConfigError and FormatError."""
    if config.replay is not None:
        return emulated_target(config)
    from wisp.engines.loading import StepLimits, load_target

    limits = StepLimits(
        config.max_sessions, config.max_batch_requests, config.max_batch_tokens, config.max_draft_tokens
    )
    if config.draft is None:
        return load_target(config.target, limits)
    from wisp.engines.co_located import CoLocatedTarget
    from wisp.engines.drafter import TransformersDrafter
    from wisp.engines.packed.loading import LoadOptions

    drafter = TransformersDrafter.load(config.draft.model, LoadOptions.of(config.draft))
    return CoLocatedTarget(load_target(config.target, limits), drafter)


def max_history(engine: TargetEngine) -> int:
    """The longest history that the engine can verify on: its context, or what its cache holds in whole pages."""
    page = engine.kv_page_tokens
    return min(engine.card.context_length, engine.kv_capacity_tokens // page * page)


@dataclass(slots=True)
class RunningServer:
    """A server that takes devices; `stop` drains it."""

    address: str
    """HOST:PORT to connect to."""
    port: int
    card: ModelCard
    protection: Protection
    registry: SessionRegistry
    loop: VerificationLoop
    metrics: MetricsEndpoint | None
    _service: VerifierService
    _server: Any
    _health: Any
    _thread: EngineThread
    _config: ServerConfig
    _verifying: asyncio.Task[None]
    """The verification loop."""
    _sweeping: asyncio.Task[None]
    _stopped: bool = field(default=False, init=False)

    async def stop(self, drain_timeout: float | None = None) -> None:
        """Refuse new rounds, let the running ones finish, send devices away, end. Does nothing the second time."""
        if self._stopped:
            return
        self._stopped = True
        await self._drain(self._config.drain_timeout if drain_timeout is None else drain_timeout)
        self._service.close_streams()
        await self._server.stop(grace=2.0)
        self.loop.stop()
        self._sweeping.cancel()
        await asyncio.gather(self._verifying, self._sweeping, return_exceptions=True)
        await asyncio.to_thread(self._thread.close)
        if self.metrics is not None:
            await asyncio.to_thread(self.metrics.close)

    async def failed(self) -> None:
        """Wait until the verification loop ends by itself, which only a defect makes it do; raises that."""
        await asyncio.shield(self._verifying)

    @property
    def _rounds_left(self) -> bool:
        return self.registry.busy and not self._verifying.done()

    async def _drain(self, within: float) -> None:
        self.registry.draining = True
        await self._health.enter_graceful_shutdown()
        deadline = asyncio.get_running_loop().time() + within
        # Polled: it happens once and is short, and an event would cost every round something.
        while self._rounds_left and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL)


async def start_server(
    engine: TargetEngine,
    config: ServerConfig,
    *,
    scheduler: Scheduler | None = None,
    observe: Callable[[BatchRecord], None] | None = None,
    protection: Protection | None = None,
    stall_timeout: float = 30.0,
) -> RunningServer:
    """Serve `engine` from this event loop; the caller keeps the engine. Raises ConfigError."""
    protection = protection or protect(config)
    clock = asyncio.get_running_loop().time
    scheduler = scheduler or FCFSScheduler(scheduler_limits(engine, config))
    telemetry = None
    if config.metrics_port is not None:
        from wisp.server.telemetry import Telemetry

        telemetry = Telemetry(scheduler, clock)
        observe = telemetry.before(observe)
    thread = EngineThread()
    loop = VerificationLoop(engine, scheduler, clock, thread, observe)
    room = max_history(engine)
    limits = RegistryLimits(
        max_sessions=config.max_sessions,
        max_sessions_per_stream=min(MAX_SESSIONS_PER_STREAM, config.max_sessions),
        max_history=room,
        idle_timeout=config.idle_timeout,
        slo_classes=config.slo_classes,
        default_slo=config.default_slo,
    )
    registry = SessionRegistry(engine.card, loop, scheduler, clock, limits)
    hello = server_hello(engine.card, config, room)
    padding = protection.certificate is not None
    service = VerifierService(engine.card, registry, protection.credentials, hello, stall_timeout, padding=padding)
    metrics = None if telemetry is None else telemetry.expose(loop, registry, config)
    try:
        server, health_servicer, port = await _listen(config, protection, service)
    except ConfigError:
        if metrics is not None:
            await asyncio.to_thread(metrics.close)
        raise
    return RunningServer(
        address=reachable(config, port),
        port=port,
        card=engine.card,
        protection=protection,
        registry=registry,
        loop=loop,
        metrics=metrics,
        _service=service,
        _server=server,
        _health=health_servicer,
        _thread=thread,
        _config=config,
        _verifying=asyncio.create_task(loop.run()),
        _sweeping=asyncio.create_task(_forget_idle(registry, config.idle_timeout)),
    )


def serve(config: ServerConfig, *, json_output: bool) -> int:
    """Run `wisp serve` until SIGTERM or SIGINT; returns the exit status. Raises UserError."""
    log_to_stderr(as_json=json_output)
    protection = protect(config)  # what is wrong with it should show before minutes of loading
    checked_system(config)
    check_address(config)
    log.info("loading", model=config.target.model)
    engine = build_engine(config)
    try:
        scheduler = build_scheduler(engine, config)
        with ExitStack() as stack:
            observe = None if config.batch_log is None else stack.enter_context(batch_log(config.batch_log))
            runner = stack.enter_context(asyncio.Runner(loop_factory=_fast_event_loop()))
            return runner.run(_serve(engine, scheduler, config, protection, observe, json_output=json_output))
    finally:
        engine.shutdown()


def _fast_event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed (the `fast` extra); None: asyncio's own."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory


def check_address(config: ServerConfig) -> None:
    """Whether one can listen there: gRPC is asked only after the model was loaded, and says less. Raises ConfigError."""
    _check_address(config.host, config.port)
    if config.metrics_port is not None:
        _check_address(config.metrics_host, config.metrics_port)


def _check_address(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {_address(host, port)}: {error.strerror or error}") from error


async def _serve(
    engine: TargetEngine,
    scheduler: Scheduler,
    config: ServerConfig,
    protection: Protection,
    observe: Callable[[BatchRecord], None] | None,
    *,
    json_output: bool,
) -> int:
    told = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    running = await start_server(engine, config, scheduler=scheduler, observe=observe, protection=protection)
    _announce(running, engine, config, json_output=json_output)
    failed = asyncio.create_task(running.failed())
    stopping = asyncio.create_task(told.wait())
    await asyncio.wait({failed, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for number in SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(number)  # a second signal ends the process at once
    broken = failed.exception() if failed.done() else None
    if broken is not None:
        log.critical("the verification loop failed", error=repr(broken), exc_info=broken)
    else:
        log.info("draining", timeout_s=config.drain_timeout, sessions=len(running.registry))
    await running.stop()
    stopping.cancel()
    failed.cancel()
    await asyncio.gather(stopping, failed, return_exceptions=True)
    estimator = estimator_of(scheduler)
    if estimator is not None:
        log.info("batch times", **asdict(estimator.errors))
    log.info("stopped")
    return 1 if broken is not None else 0


def _announce(running: RunningServer, engine: TargetEngine, config: ServerConfig, *, json_output: bool) -> None:
    """Say that the server is ready, and how to connect a device."""
    protection = running.protection
    command = edge_command(config, protection, running.port)
    log.info("ready", address=running.address, model=engine.card.model_id, tls=protection.certificate is not None)
    if running.metrics is not None:
        log.info("metrics", address=running.metrics.address)
    if json_output:
        sys.stdout.write(json.dumps(_ready(running, engine, config)) + "\n")
        sys.stdout.flush()
    sys.stderr.write(f"\nConnect a device:\n\n    {command}\n\n")
    if protection.own_token is not None:
        sys.stderr.write(f"The token is the first word of {config.security.state_dir / 'token'}\n\n")
    sys.stderr.flush()


def _ready(running: RunningServer, engine: TargetEngine, config: ServerConfig) -> dict[str, Any]:
    protection, card = running.protection, engine.card
    certificate = protection.certificate
    return {
        "event": "ready",
        "address": running.address,
        "port": running.port,
        "pid": os.getpid(),
        "model": card.model_id,
        "vocabulary": card.vocabulary,
        "context_length": max_history(engine),
        "kv_capacity_tokens": engine.kv_capacity_tokens,
        "tls": certificate is not None,
        "ca_fingerprint": certificate.ca_fingerprint if certificate is not None else None,
        "token_required": protection.credentials.tokens is not None,
        "emulated": card.emulated,
        "system": config.system,
        "metrics": None if running.metrics is None else running.metrics.address,
    }


async def _listen(config: ServerConfig, protection: Protection, service: VerifierService) -> tuple[Any, Any, int]:
    server = grpc.aio.server(options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((service.handler(),))
    health_servicer = _HEALTH.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    address, credentials = _address(config.host, config.port), protection.grpc_credentials()
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: is another server running there?") from error
    await server.start()
    for name in ("", SERVICE_NAME):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, health_servicer, port


async def _forget_idle(registry: SessionRegistry, idle_timeout: float) -> None:
    while True:
        await asyncio.sleep(min(SWEEP_PERIOD, idle_timeout / 2))
        registry.forget_idle()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
