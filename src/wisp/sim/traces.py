"""Recorded workloads in the public forms: Azure's CSV and Mooncake's JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

from wisp.errors import FormatError
from wisp.sim.workload import TracedSession


def load_trace(path: Path) -> tuple[TracedSession, ...]:
    """Read a trace, told apart by its suffix (.csv, .jsonl); its first arrival is time 0. Raises FormatError."""
    reader = READERS.get(path.suffix)
    if reader is None:
        raise FormatError(f"{path}: traces end in {' or '.join(READERS)}")
    try:
        with path.open(newline="") as lines:
            sessions = sorted(reader(lines, path), key=lambda session: session.arrival)
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read the trace {path}: {error}") from error
    if not sessions:
        raise FormatError(f"{path} holds no sessions")
    first = sessions[0].arrival
    return tuple(TracedSession(one.arrival - first, one.num_prompt_tokens, one.num_output_tokens) for one in sessions)


def _azure(lines: TextIO, path: Path) -> Iterator[TracedSession]:
    """TIMESTAMP, ContextTokens, GeneratedTokens (Azure/AzurePublicDataset)."""
    rows = csv.DictReader(lines)
    for row in rows:
        try:
            arrival = (datetime.fromisoformat(row["TIMESTAMP"]) - datetime.min).total_seconds()  # noqa: DTZ901
            yield _session(arrival, row["ContextTokens"], row["GeneratedTokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path}, line {rows.line_num}: not a row of an Azure trace: {error!r}") from error


def _mooncake(lines: TextIO, path: Path) -> Iterator[TracedSession]:
    """{"timestamp": milliseconds, "input_length": tokens, "output_length": tokens} (kvcache-ai/Mooncake)."""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            yield _session(float(row["timestamp"]) / 1e3, row["input_length"], row["output_length"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{path}, line {number}: not a row of a Mooncake trace: {error!r}") from error


def _session(arrival: float, num_prompt: str | int, num_output: str | int) -> TracedSession:
    """Sessions without a prompt or an answer still cost a token of each."""
    return TracedSession(arrival, max(int(num_prompt), 1), max(int(num_output), 1))


READERS: dict[str, Callable[[TextIO, Path], Iterator[TracedSession]]] = {".csv": _azure, ".jsonl": _mooncake}
