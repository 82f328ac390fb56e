"""The servers under test: `wisp serve` as processes, one for each system."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wisp.config import EdgeConfig, with_system
from wisp.demo.processes import command
from wisp.policy.systems import SYSTEMS
from wisp.types import SLO

MAX_SESSIONS = 4096
MAX_BATCH_REQUESTS = 256
KV_GIB = 2.0
EMULATED_CONTEXT = 1 << 15
"""Of an emulated target, whatever the model's own is: longer than any history here."""
IDLE_TIMEOUT = 5.0
"""Seconds after which a server forgets the sessions of devices that are gone: a point must not weigh on the next one."""


@dataclass(frozen=True, slots=True)
class TargetUnderTest:
    """What serves: a real model, or an emulated one."""

    model: Path
    """Folder of the target."""
    draft: Path | None
    """Folder of the draft model, for systems that draft on the server; None: there is none beside the target."""
    slos: Sequence[SLO]
    calibration: str
    """Batch times: what schedulers start from, and of an emulated target what batches last."""
    replay: Path | None = None
    """Emulated: the trace that gives the verdicts."""
    kv_tokens: int | None = None
    """Emulated: tokens that the KV cache holds; None: no limit."""
    predictor: Path | None = None
    """For the devices' stop rules."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs one system."""

    system: str
    ready: dict[str, Any]
    device: EdgeConfig
    """How devices connect and draft under this system."""
    tokens: Path
    batch_log: Path

    def accept(self, tokens: Sequence[str]) -> None:
        """Let these credentials in from now on, and no others."""
        names = (f"{token} device-{token}" for token in tokens)
        self.tokens.write_text("\n".join(names) + "\n", encoding="utf-8")


@asynccontextmanager
async def served(system: str, target: TargetUnderTest, folder: Path, log: Path) -> AsyncGenerator[Served, None]:
    """A server for `system` that writes its batches to `log`, its other files in `folder`.

    Raises EngineError when it does not start.
    """
    tokens = folder / f"{system}-tokens"
    tokens.write_text("nobody-yet\n", encoding="utf-8")
    arguments = [*_arguments(system, target), "--tokens-file", str(tokens), "--batch-log", str(log)]
    async with command(["serve", str(target.model), *arguments]) as ready:
        device = with_system(EdgeConfig(server=ready["address"], predictor=target.predictor), system)
        yield Served(system, ready, device, tokens, log)


def _arguments(system: str, target: TargetUnderTest) -> list[str]:
    row = SYSTEMS[system]
    arguments = ["--system", system, "--port", "0", "--max-sessions", str(MAX_SESSIONS)]
    arguments += ["--max-batch-requests", str(MAX_BATCH_REQUESTS), "--idle-timeout", str(IDLE_TIMEOUT)]
    for slo in target.slos:
        arguments += ["--slo-class", f"{slo.name}={slo.tokens_per_s},{slo.first_token_s}"]
    arguments += ["--default-slo", target.slos[0].name]
    if target.replay is not None:
        arguments += ["--replay", str(target.replay), "--batch-times", target.calibration]
        arguments += ["--max-context", str(EMULATED_CONTEXT)]
        return arguments if target.kv_tokens is None else [*arguments, "--kv-tokens", str(target.kv_tokens)]
    arguments += ["--kv-gib", str(KV_GIB)]
    if row.drafts.on_server and target.draft is not None:
        arguments += ["--draft", str(target.draft)]
    if row.estimates:
        arguments += ["--profile", target.calibration]
    return arguments
