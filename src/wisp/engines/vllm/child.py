"""A process of its own for vLLM, and the connection to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

from wisp.engines.vllm.settings import VllmSettings, environment

_STOP_TIMEOUT = 10.0


def start(module: str, settings: VllmSettings) -> tuple[subprocess.Popen[bytes], Connection]:
    """Run `python -m MODULE DESCRIPTOR`: the descriptor is its end of the connection, which ends when we do."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(  # noqa: S603 - this program itself
        [sys.executable, "-m", module, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env={**os.environ, **environment(settings)},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # standard output is for results
        start_new_session=True,  # Ctrl-C is for the parent, which ends this in order
    )
    theirs.close()
    return process, Connection(ours.detach())


def end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    """Close the connection, on which the process ends; kill it if it does not."""
    connection.close()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
