"""Assembles the device: connect, fetch the tokenizer, load the drafter, compare vocabularies, serve the endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from wisp.config import LOOPBACK_HOSTS, EdgeConfig, ModelConfig
from wisp.drafting import DraftWorker
from wisp.edge.client import ServerConnection
from wisp.edge.device import Device
from wisp.edge.openai.routes import create_app
from wisp.edge.stop_rules import check_predictor
from wisp.edge.target import TargetInfo
from wisp.edge.tokenizer import DEFAULT_CACHE, load_tokenizer
from wisp.engines.base import DraftEngine
from wisp.engines.ngram import NgramDrafter
from wisp.errors import ConfigError, VocabularyMismatch
from wisp.formats.predictor import TrainedPredictor
from wisp.logs import log_to_stderr, logger
from wisp.types import AcceptanceRule

log = logger(__name__)

SHUTDOWN_TIMEOUT = 5.0
"""Seconds that running responses get after SIGTERM; then they end with an error."""
LAST_WORDS_TIMEOUT = 2.0
"""Seconds that clients get to read this error before they are cut off."""

LoadDrafter = Callable[[EdgeConfig], DraftEngine]


def load_drafter(config: EdgeConfig) -> DraftEngine:
    """The configured draft model, or the n-gram drafter. Raises ModelError."""
    if config.draft is None:
        return NgramDrafter()
    return _load_model(config.draft)


@asynccontextmanager
async def connected_device(
    config: EdgeConfig, load: LoadDrafter = load_drafter, cache: Path = DEFAULT_CACHE
) -> AsyncGenerator[Device, None]:
    """A device that is ready to generate.

    Raises ConfigError, ModelError, VocabularyMismatch, ConnectionLost, AuthenticationFailed, VersionMismatch.
    """
    trained = None if config.predictor is None else TrainedPredictor.load(config.predictor)
    connection = ServerConnection(config)
    worker = None
    try:
        await connection.start()
        target = connection.target
        _check_terms(config, target)
        tokenizer = await load_tokenizer(connection.hello.tokenizer_sha256, connection.fetch_tokenizer, cache)
        if config.max_draft_tokens > 0:
            engine = await asyncio.to_thread(load, config)
            worker = DraftWorker(engine, emulated_draft_time=config.emulated_draft_time)
            check_vocabulary(engine, target)
            if trained is not None:
                check_predictor(trained, engine, target)
            connection.vocabulary = engine.vocabulary or ""
        device = Device(config, connection, tokenizer, worker, trained)
        await asyncio.to_thread(device.chat_template.prepare)
        yield device
    finally:
        await connection.close()
        if worker is not None:
            await asyncio.to_thread(worker.shutdown)


def check_vocabulary(engine: DraftEngine, target: TargetInfo) -> None:
    """Refuse a drafter whose token ids mean something else. Raises VocabularyMismatch."""
    if engine.vocabulary is None or engine.vocabulary == target.vocabulary:
        return
    raise VocabularyMismatch(
        f"the drafter {engine.model_id} does not share the vocabulary of the target {target.model_id}:\n"
        f"  drafter {engine.vocabulary} ({engine.vocabulary_size} tokens)\n"
        f"  target  {target.vocabulary} ({target.vocabulary_size} tokens)\n"
        "draft with a model of the same tokenizer, or leave --draft out to draft by n-gram lookup"
    )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local endpoint that takes requests."""

    url: str
    """Base URL for OpenAI clients, with /v1."""
    device: Device


@asynccontextmanager
async def serving(
    config: EdgeConfig,
    load: LoadDrafter = load_drafter,
    cache: Path = DEFAULT_CACHE,
) -> AsyncGenerator[Endpoint, None]:
    """Device and endpoint in this event loop, without signal handlers: for the demo and for tests."""
    with _listening(config) as listener:
        async with connected_device(config, load, cache) as device:
            server = _DeviceServer(device)
            task = asyncio.create_task(server.serve([listener]))
            try:
                yield Endpoint(_url(config, listener), device)
            finally:
                server.should_exit = True
                await task


def run_edge(config: EdgeConfig, *, json_output: bool) -> int:
    """Run `wisp edge` until SIGTERM or SIGINT; returns the exit status. Raises errors of the tree if it cannot start."""
    log_to_stderr(as_json=json_output)
    if config.host not in LOOPBACK_HOSTS and config.api_key is None:
        log.warning("everybody who reaches this endpoint may use it: set --api-key to ask for one", host=config.host)
    try:
        asyncio.run(_run(config, json_output=json_output))
    except KeyboardInterrupt:
        return 130
    return 0


async def _run(config: EdgeConfig, *, json_output: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is to be wound up yet, and loading cannot be cancelled
    with _listening(config) as listener:
        async with connected_device(config) as device:
            server = _AnnouncingServer(device, lambda: _announce(device, listener, json_output))
            await server.serve([listener])


class _DeviceServer(uvicorn.Server):
    """The endpoint of a device; leaves the process's signals alone."""

    def __init__(self, device: Device) -> None:
        super().__init__(_uvicorn_config(device))
        self._device = device

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for running responses; those that last too long end by losing the server for good."""
        ending = asyncio.create_task(self._end_responses())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
        await self._device.connection.close()
        if self.server_state.tasks:  # the wait was cut short: let them say their last words
            await asyncio.wait(self.server_state.tasks, timeout=LAST_WORDS_TIMEOUT)

    async def _end_responses(self) -> None:
        await asyncio.sleep(SHUTDOWN_TIMEOUT)
        await self._device.connection.close()


class _AnnouncingServer(_DeviceServer):
    """Says that it is ready once it is; ends on SIGTERM or SIGINT, at once on the second SIGINT."""

    def __init__(self, device: Device, announce: Callable[[], None]) -> None:
        super().__init__(device)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        self._announce()


def _announce(device: Device, listener: socket.socket, json_output: bool) -> None:
    url, drafter = _url(device.config, listener), _drafter_name(device)
    if json_output:
        sys.stdout.write(json.dumps(_ready(device, listener)) + "\n")
        sys.stdout.flush()
    key = "" if device.config.api_key is None else ' -H "Authorization: Bearer $WISP_API_KEY"'
    body = '{"messages": [{"role": "user", "content": "Hello"}]}'
    path = "chat/completions"
    if device.target.chat_template is None:
        body, path = '{"prompt": "Hello"}', "completions"
    sys.stderr.write(
        f"\n{url} serves {device.target.model_id}, drafted by {drafter}\n\n"
        f"    curl {url}/{path}{key} -H 'Content-Type: application/json' -d '{body}'\n\n"
    )
    sys.stderr.flush()


def _ready(device: Device, listener: socket.socket) -> dict[str, object]:
    return {
        "event": "ready",
        "url": _url(device.config, listener),
        "port": listener.getsockname()[1],
        "pid": os.getpid(),
        "server": device.config.server,
        "model": device.target.model_id,
        "drafter": None if device.worker is None else device.worker.engine.model_id,
        "stop_rule": device.config.stop_rule,
        "draft_tokens": min(device.config.max_draft_tokens, device.target.max_draft_tokens),
        "emulated_target": device.target.emulated,
        "emulated_draft_time": device.config.emulated_draft_time,
        "emulated_rtt": device.config.emulated_rtt,
    }


def _drafter_name(device: Device) -> str:
    if device.worker is None:
        return "nobody (plain decoding)"
    emulated = device.config.emulated_draft_time or device.config.emulated_rtt
    return device.worker.engine.model_id + (" (speed emulated)" if emulated else "")


def _check_terms(config: EdgeConfig, target: TargetInfo) -> None:
    """Whether the server offers what this device is configured to ask for. Raises ConfigError."""
    if AcceptanceRule(config.rule) not in target.acceptance_rules:
        offered = ", ".join(target.acceptance_rules)
        raise ConfigError(f"the server does not offer the acceptance rule {config.rule!r} (it offers {offered})")
    if config.slo is not None and config.slo not in target.slo_classes:
        offered = ", ".join(target.slo_classes)
        raise ConfigError(f"the server has no SLO class {config.slo!r} (it has {offered})")


def _load_model(draft: ModelConfig) -> DraftEngine:
    from wisp.engines.drafter import TransformersDrafter
    from wisp.engines.packed.loading import LoadOptions

    return TransformersDrafter.load(draft.model, LoadOptions.of(draft))


@contextmanager
def _listening(config: EdgeConfig) -> Iterator[socket.socket]:
    """A listening socket, bound before anything slow begins. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
            listener.listen(1024)
        except OSError as error:
            raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}") from error
        yield listener
    finally:
        listener.close()


def _url(config: EdgeConfig, listener: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{listener.getsockname()[1]}/v1"


def _uvicorn_config(device: Device) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(device),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=int(SHUTDOWN_TIMEOUT + LAST_WORDS_TIMEOUT),
    )
