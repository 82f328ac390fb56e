"""A server process that accounts for itself: how much CPU went into the forward pass, and how much into all the rest.

    python -m wisp.bench.served MODEL      with a real target
    python -m wisp.bench.served --bare     an emulated target that takes no time: the cost of protocol and server alone

Prints a line of JSON when it is ready, and its account for every line that it reads.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wisp.bench.workload import NUM_SESSIONS, bare_card, bare_recording
from wisp.config import ModelConfig, ServerConfig
from wisp.engines.base import TargetEngine
from wisp.engines.timed import TimedTarget
from wisp.server.app import start_server
from wisp.server.loop import BatchRecord


@dataclass(slots=True)
class Account:
    """What the process has done so far."""

    forward_cpu_s: float = 0.0
    forward_s: float = 0.0
    num_batches: int = 0
    num_requests: int = 0
    num_positions: int = 0
    _started: float = field(default_factory=time.process_time)

    def observe(self, record: BatchRecord) -> None:
        """Count a batch."""
        self.num_batches += 1
        self.num_requests += len(record.batch.members)
        self.num_positions += record.batch.num_new_tokens

    def timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, with its time noted; torch computes on the calling thread."""

        def timed_run(*args: Any, **kwargs: Any) -> Any:
            started, cpu_started = time.perf_counter(), time.thread_time()
            try:
                return run(*args, **kwargs)
            finally:
                self.forward_cpu_s += time.thread_time() - cpu_started
                self.forward_s += time.perf_counter() - started

        return timed_run

    def line(self) -> str:
        """The account as JSON."""
        return json.dumps(
            {
                "cpu_s": time.process_time() - self._started,
                "forward_cpu_s": self.forward_cpu_s,
                "forward_s": self.forward_s,
                "batches": self.num_batches,
                "requests": self.num_requests,
                "positions": self.num_positions,
            }
        )


def real_target(model: str, account: Account) -> TargetEngine:
    """The target of `model`, its forward pass timed."""
    from wisp.engines.packed.loading import DEFAULTS, load
    from wisp.engines.target import TransformersTarget

    loaded = load(model, DEFAULTS)
    loaded.packed.model.forward = account.timed(loaded.packed.model.forward)
    return TransformersTarget(loaded)


def bare_target() -> TargetEngine:
    """An emulated target that answers at once."""
    return TimedTarget(bare_card(), bare_recording(), lambda _: 0.0, lambda _: None)


async def run(engine: TargetEngine, account: Account) -> None:
    """Serve until standard input ends."""
    config = ServerConfig(ModelConfig("bench"), port=0, max_sessions=4 * NUM_SESSIONS)
    server = await start_server(engine, config, observe=account.observe)
    _say(json.dumps({"address": server.address}))
    while await asyncio.to_thread(sys.stdin.readline):
        _say(account.line())
    await server.stop(0.0)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run as a process of its own."""
    logging.getLogger("wisp").setLevel(logging.ERROR)
    account = Account()
    engine = bare_target() if sys.argv[1] == "--bare" else real_target(sys.argv[1], account)
    asyncio.run(run(engine, account))


if __name__ == "__main__":
    main()
