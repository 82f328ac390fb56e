"""The assembled server as a process: readiness, signals, exit status."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeTarget
from tests.server.device import PROMPT, config, connected, decode, generation
from wisp.engines.base import TargetEngine
from wisp.errors import ConfigError
from wisp.policy.scheduler import FCFSScheduler, SchedulerLimits
from wisp.server.app import check_address, max_history, start_server
from wisp.server.scheduling import scheduler_limits
from wisp.types import Batch, WaitUntil

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.fakes import FakeTarget
from tests.server.device import config
from wisp.config import SecurityConfig
from wisp.server import app

app.build_engine = lambda _config: FakeTarget()
host, state = sys.argv[1:]
given = replace(config(security=SecurityConfig(state_dir=Path(state))), host=host)
sys.exit(app.serve(given, json_output=True))
"""


async def _start(host: str, state: Path) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, host, str(state),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = await process.stdout.readline()
    assert line, (await process.communicate())[1].decode()
    return process, json.loads(line)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_says_that_it_is_ready_and_drains_when_told_to_stop(tmp_path: Path, number: int) -> None:
    """One JSON line on stdout, logs on stderr, exit status 0."""
    process, ready = await _start("127.0.0.1", tmp_path)
    assert ready["event"] == "ready"
    assert ready["pid"] == process.pid
    assert ready["model"] == "fake-target"
    assert (ready["tls"], ready["token_required"], ready["emulated"]) == (False, False, True)
    assert ready["kv_capacity_tokens"] == 1 << 20
    async with connected(ready["address"]) as device:
        await device.open(1, generation())
        await device.opened()
        process.send_signal(number)
        assert (await device.error()).session == 0
    out, err = await process.communicate()
    assert process.returncode == 0
    assert out == b""
    events = [json.loads(line)["event"] for line in err.decode().splitlines() if line.startswith("{")]
    # gRPC has a word of its own to say where a device and the server hang up at the same moment.
    ours = [event for event in events if "device" not in event and "_handle_exceptions" not in event]
    assert ours == ["loading", "ready", "draining", "stopped"]
    assert f"wisp edge --server {ready['address']}" in err.decode()


async def test_an_address_that_is_taken_is_told_before_the_model_is_loaded() -> None:
    """Loading may take minutes."""
    running = await start_server(FakeTarget(), config())
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{running.port}: Address already in use"):
        check_address(replace(config(), port=running.port))
    await running.stop(0.0)
    check_address(replace(config(), port=running.port))


async def test_the_first_start_off_loopback_prints_the_whole_command(tmp_path: Path) -> None:
    """With fingerprint and token; the token is in no log line, and in no later start's output."""
    tokens = []
    for is_first in (True, False):
        process, ready = await _start("0.0.0.0", tmp_path / "state")
        process.terminate()
        err = (await process.communicate())[1].decode()
        assert (ready["tls"], ready["token_required"]) == (True, True)
        assert f"--ca-fingerprint {ready['ca_fingerprint']} --token" in err
        token = (tmp_path / "state" / "token").read_text().split()[0]
        tokens.append(token)
        assert (f"--token {token}" in err) == is_first
        assert not any(token in line for line in err.splitlines() if line.startswith("{"))
    assert tokens[0] == tokens[1]


async def test_a_verification_loop_that_fails_is_noticed() -> None:
    """The process ends instead of serving nobody."""

    class Broken(FCFSScheduler):
        def schedule(self, now: float) -> Batch | WaitUntil:
            if self._waiting:
                raise ZeroDivisionError
            return super().schedule(now)

    running = await start_server(FakeTarget(), config(), scheduler=Broken(SchedulerLimits()))
    async with connected(running.address) as device:
        await device.open(1, generation())
        await device.opened()
        await device.decode(1, decode(1, len(PROMPT)))
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(10):
                await running.failed()
        stopping = asyncio.create_task(running.stop())
        assert (await device.error()).session == 0
        await device.ended()
        await stopping


def test_the_engine_sets_the_limits() -> None:
    """Cache in whole pages; context or cache, whichever is smaller."""
    engine: TargetEngine = FakeTarget(kv_capacity_tokens=1000, kv_page_tokens=256)
    assert max_history(engine) == 768
    limits = scheduler_limits(engine, config(max_sessions=3))
    assert (limits.kv_capacity_tokens, limits.kv_page_tokens, limits.max_sessions) == (1000, 256, 3)
    assert max_history(FakeTarget()) == FakeTarget().card.context_length
