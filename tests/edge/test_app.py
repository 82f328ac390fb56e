"""`wisp edge` as a process, and what it refuses before it serves."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import AsyncMock

import httpx
import pytest

from tests.edge.endpoint import edge_config, everything, expected_text, server_config, until
from tests.fakes import FakeDrafter, FakeTarget, fake_card
from wisp.edge.app import serving
from wisp.edge.target import target_info
from wisp.errors import ConfigError, ProtocolError
from wisp.protocol import wisp_pb2 as pb
from wisp.server.app import start_server
from wisp.types import AcceptanceRule


async def test_the_command(tmp_path: Path) -> None:
    """It says where it serves, answers, and ends on SIGTERM."""
    server = await start_server(FakeTarget(), server_config())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wisp", "edge", "--server", server.address, "--port", "0", "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"HOME": str(tmp_path), "PATH": ""},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    ready = json.loads(await process.stdout.readline())
    assert (ready["event"], ready["model"], ready["emulated_target"]) == ("ready", "fake-target", True)
    async with httpx.AsyncClient(timeout=30.0) as client:
        body = {"prompt": "once upon", "max_tokens": 8, "temperature": 0}
        answer = await client.post(f"{ready['url']}/completions", json=body)
    assert answer.json()["choices"][0]["text"] == expected_text("once upon", 8)
    process.send_signal(signal.SIGTERM)
    stderr = (await process.stderr.read()).decode()
    assert await process.wait() == 0
    assert f"curl {ready['url']}/chat/completions" in stderr
    assert "n-gram" in stderr or "ngram" in stderr
    await server.stop(0.0)


@pytest.mark.parametrize("forced", [False, True])
async def test_responses_that_outlast_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    """They get some time to finish, then an error in the API's form; a second interrupt only takes their time away."""
    monkeypatch.setattr("wisp.edge.app.SHUTDOWN_TIMEOUT", 30.0 if forced else 0.1)
    if forced:
        monkeypatch.setattr("uvicorn.Server._wait_tasks_to_complete", AsyncMock())
    going, hold = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(_: object) -> None:
        loop.call_soon_threadsafe(going.set)
        hold.wait(5.0)

    server = await start_server(FakeTarget(on_step=slow), server_config())
    body = {"prompt": "once", "max_tokens": 8}
    async with httpx.AsyncClient(timeout=30.0) as client:
        async with serving(edge_config(server.address, api_key=None), lambda _: FakeDrafter(), tmp_path) as endpoint:
            post = partial(client.post, f"{endpoint.url}/completions")
            answers = [asyncio.create_task(post(json={**body, "stream": stream})) for stream in (True, False)]
            await going.wait()
            await until(lambda: len(server.registry) == 2)
        streamed, whole = [await answer for answer in answers]
    assert "shutting down" in streamed.text
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "device_closing")
    hold.set()
    await server.stop(0.0)


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """It is told before anything slow begins."""
    async with everything(tmp_path) as setup:
        port = int(setup.endpoint.url.rpartition(":")[2].removesuffix("/v1"))
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with serving(edge_config(setup.server.address, port=port)):
                pytest.fail("two endpoints on one port")


@pytest.mark.parametrize(("field", "value"), [("slo", "ludicrous"), ("rule", "rejection")])
async def test_terms_that_the_server_does_not_offer(tmp_path: Path, field: str, value: str) -> None:
    """An unknown SLO class or acceptance rule ends the start, not every request."""
    card = replace(fake_card(), acceptance_rules=(AcceptanceRule.COUPLED,))
    server = await start_server(FakeTarget(card), server_config())
    with pytest.raises(ConfigError, match=value):
        async with serving(edge_config(server.address, **{field: value}), cache=tmp_path):
            pytest.fail("the device started")
    await server.stop(0.0)


async def test_a_hello_that_cannot_be_used_leaves_no_connection(tmp_path: Path) -> None:
    """A device that does not start stops trying to connect."""
    card = replace(fake_card(), vocabulary_size=0)
    server = await start_server(FakeTarget(card), server_config())
    tasks = asyncio.all_tasks()
    with pytest.raises(ProtocolError, match="lacks the size"):
        async with serving(edge_config(server.address), cache=tmp_path):
            pytest.fail("the device started")
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - tasks]  # type: ignore[union-attr]
    assert "ServerConnection._keep_connected" not in names
    await server.stop(0.0)


@pytest.mark.parametrize("special_tokens", ["{", "[]"])
def test_a_hello_that_cannot_be_used(special_tokens: str) -> None:
    """What a device cannot work with is refused when it connects."""
    with pytest.raises(ProtocolError):
        target_info(pb.ServerHello(vocabulary_size=1, context_length=1, special_tokens_json=special_tokens))
    with pytest.raises(ProtocolError):
        target_info(pb.ServerHello())
