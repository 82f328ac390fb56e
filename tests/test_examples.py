"""The examples run, and say what their README says."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path

import pytest

from tests.edge.endpoint import edge_of, server_config
from tests.fakes import FakeTarget
from wisp.server.app import start_server

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_own_stop_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the stop rule, the output is the same."""
    runpy.run_path(str(EXAMPLES / "own_stop_rule.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.endswith("all outputs identical: True\n")
    assert "stop when torn" in printed


async def test_openai_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stream of text, then the number of tokens."""
    server = await start_server(FakeTarget(), server_config())
    example = runpy.run_path(str(EXAMPLES / "openai_client.py"))
    try:
        async with edge_of(server.address, tmp_path, api_key=None) as (endpoint, _):
            await asyncio.to_thread(example["main"], endpoint.url)
    finally:
        await server.stop(0.0)
    assert "tokens, " in capsys.readouterr().out.splitlines()[-1]
