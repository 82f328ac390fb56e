"""What a server writes of the batches that it ran: JSON lines, one per batch (docs/benchmarks.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wisp.errors import FormatError
from wisp.policy.batch_time import BatchShape

FORMAT = "wisp-batch-log"
VERSION = 2


@dataclass(frozen=True, slots=True)
class LoggedMember:
    """What one request did in a batch."""

    num_new: int
    """Positions computed."""
    num_cached: int
    """Tokens that were cached before."""
    completes: bool
    """False: a part of its prompt only."""
    arrival: float
    """When its question came."""


@dataclass(frozen=True, slots=True)
class LoggedBatch:
    """One batch; times by the server's monotonic clock, in seconds."""

    started: float
    elapsed: float
    cpu_s: float
    """CPU time of the server's process, since it started, all of its threads together."""
    failed: bool
    members: tuple[LoggedMember, ...]
    waited: float = 0.0
    """Since the batch before, in which no batch could begin: nobody was there, or the scheduler held it back."""
    drafted: bool = False
    """Whether the server drafted itself in it, for rounds of plain decoding: a drafter's time is part of its own."""

    @property
    def shape(self) -> BatchShape:
        return BatchShape.of_members((member.num_new, member.num_cached) for member in self.members)

    def line(self) -> str:
        """As it is written."""
        members = [[m.num_new, m.num_cached, int(m.completes), round(m.arrival, 6)] for m in self.members]
        content = {
            "started": round(self.started, 6),
            "elapsed": round(self.elapsed, 6),
            "waited": round(self.waited, 6),
            "cpu_s": round(self.cpu_s, 4),
            "failed": self.failed,
            "drafted": self.drafted,
            "members": members,
        }
        return json.dumps(content, separators=(",", ":")) + "\n"


def header_line() -> str:
    """The first line of a log."""
    return json.dumps({"format": FORMAT, "version": VERSION}) + "\n"


def read_batch_log(path: Path) -> list[LoggedBatch]:
    """The batches of a log; a last line that is still being written is left out. Raises FormatError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read the batch log {path}: {error}") from error
    if lines[0] + "\n" != header_line():
        raise FormatError(f"{path} is not a {FORMAT} of version {VERSION}: `wisp serve --batch-log` writes one")
    return list(_batches(path, lines[1:-1]))


def _batches(path: Path, lines: list[str]) -> Iterator[LoggedBatch]:
    for number, line in enumerate(lines, 2):
        try:
            yield _batch_of_json(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path}, line {number}: not a batch of a batch log: {error!r}") from error


def _batch_of_json(content: dict[str, Any]) -> LoggedBatch:
    return LoggedBatch(
        started=float(content["started"]),
        elapsed=float(content["elapsed"]),
        cpu_s=float(content["cpu_s"]),
        failed=bool(content["failed"]),
        waited=float(content["waited"]),
        drafted=bool(content.get("drafted", False)),
        members=tuple(
            LoggedMember(int(num_new), int(num_cached), bool(completes), float(arrival))
            for num_new, num_cached, completes, arrival in content["members"]
        ),
    )
