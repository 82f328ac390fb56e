"""A server with a fake target and a device with a fake drafter, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from tests.fakes import EOS, FakeDrafter, FakeTarget, generate, tokenizer_json
from wisp.config import EdgeConfig, ModelConfig, ServerConfig
from wisp.edge.app import Endpoint, serving
from wisp.edge.tokenizer import parse
from wisp.server.app import RunningServer, start_server
from wisp.server.scheduling import build_scheduler
from wisp.types import GenerationRequest, SamplingParams, StopRules

KEY = "secret"
TOKENIZER = parse(tokenizer_json())


def server_config(**fields: Any) -> ServerConfig:
    """A server on a free port of loopback."""
    return ServerConfig(target=ModelConfig("fake"), **{"port": 0, "drain_timeout": 5.0, **fields})


def edge_config(address: str, **fields: Any) -> EdgeConfig:
    """A device of the server at `address`, on a free port of loopback."""
    return EdgeConfig(server=address, **{"port": 0, "api_key": KEY, **fields})


@dataclass
class Setup:
    """What a test of the endpoint talks to and looks at."""

    client: AsyncOpenAI
    target: FakeTarget
    drafter: FakeDrafter
    server: RunningServer
    endpoint: Endpoint


@asynccontextmanager
async def edge_of(
    address: str, cache: Path, drafter: FakeDrafter | None = None, **fields: Any
) -> AsyncGenerator[tuple[Endpoint, AsyncOpenAI], None]:
    """A device of the server at `address`, and a client of the device."""
    given = drafter or FakeDrafter()
    async with (
        serving(edge_config(address, **fields), lambda _: given, cache) as endpoint,
        AsyncOpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0, timeout=30.0) as client,
    ):
        yield endpoint, client


@asynccontextmanager
async def everything(
    cache: Path,
    target: FakeTarget | None = None,
    drafter: FakeDrafter | None = None,
    server: ServerConfig | None = None,
    **fields: Any,
) -> AsyncGenerator[Setup, None]:
    """Server, device and client."""
    target = target or FakeTarget()
    drafter = drafter or FakeDrafter()
    config = server or server_config()
    running = await start_server(target, config, scheduler=build_scheduler(target, config))
    try:
        async with edge_of(running.address, cache, drafter, **fields) as (endpoint, client):
            yield Setup(client, target, drafter, running, endpoint)
    finally:
        await running.stop(0.0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another part of the process does, and fail if it never does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


def expected_text(prompt: str, max_tokens: int, *, eos_one_in: int = 0, **sampling: Any) -> str:
    """What the fake target answers to a prompt, by plain decoding without any of WISP."""
    tokens = tuple(TOKENIZER.encode(prompt).ids)
    request = GenerationRequest(
        tokens, len(tokens), SamplingParams(**sampling), StopRules(max_tokens, frozenset({EOS}))
    )
    return TOKENIZER.decode(generate(request, eos_one_in=eos_one_in))
