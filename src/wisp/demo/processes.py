"""The commands of the demo that run as processes of their own: `wisp serve` and `wisp edge`."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from wisp.errors import EngineError

START_TIMEOUT = 120.0
STOP_TIMEOUT = 15.0

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has processes of its own; SIGTERM cancels it as Ctrl-C does, so that they end with it.

    Raises SystemExit on SIGTERM.
    """
    return asyncio.run(_cancelled_by_sigterm(main))


async def _cancelled_by_sigterm(main: Coroutine[Any, Any, T]) -> T:
    task, told = asyncio.ensure_future(main), asyncio.Event()

    def end() -> None:
        told.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    try:
        return await task
    except asyncio.CancelledError:
        if told.is_set():
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


@asynccontextmanager
async def command(arguments: Sequence[str]) -> AsyncGenerator[dict[str, Any], None]:
    """Run `wisp ARGUMENTS --json`; yields its ready line, and ends it with SIGTERM. Raises EngineError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "wisp",
        *arguments,
        "--json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the demo, which ends its processes in order
    )
    errors = asyncio.create_task(_last_lines(process))
    try:
        yield await _ready(process, arguments[0], errors)
    finally:
        await _end(process)
        await errors


async def _ready(process: asyncio.subprocess.Process, name: str, errors: asyncio.Task[list[str]]) -> dict[str, Any]:
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT)
    except TimeoutError:
        raise EngineError(f"wisp {name} was not ready within {START_TIMEOUT:g} s") from None
    if not line:
        status, last = await process.wait(), await errors
        raise EngineError(f"wisp {name} ended with status {status}:\n" + "\n".join(last))
    ready: dict[str, Any] = json.loads(line)
    return ready


async def _last_lines(process: asyncio.subprocess.Process, keep: int = 15) -> list[str]:
    """Read what the process says on standard error, so that it never blocks; returns the end of it."""
    assert process.stderr is not None
    lines: list[str] = []
    async for line in process.stderr:
        lines = [*lines[1 - keep :], line.decode(errors="replace").rstrip()]
    return lines


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
