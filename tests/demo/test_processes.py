"""Commands that have processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PARENT = """
import asyncio
from wisp.demo.processes import run

async def main() -> None:
    try:
        print("running", flush=True)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        print("processes ended", flush=True)

run(main())
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_leaves_no_processes_behind(number: signal.Signals, status: int) -> None:
    """What was to be ended is ended, whichever it is."""
    # A shell that runs the tests in the background has its commands ignore Ctrl-C.
    heed = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{PARENT}"
    with subprocess.Popen([sys.executable, "-c", heed], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "running\n"
        parent.send_signal(number)
        assert parent.stdout.read() == "processes ended\n"
    assert parent.returncode == status
