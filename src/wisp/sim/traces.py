"""Recorded workloads in the public forms: Azure's CSV, Mooncake's JSON lines, and conversations as ShareGPT has them.

Conversations are texts without times: their lengths can be drawn from, and are estimated at 4 characters a token.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from wisp.errors import ConfigError, FormatError
from wisp.sim.workload import TracedSession

CHARACTERS_PER_TOKEN = 4
"""Of English text, about, with the vocabularies of today's models."""


def load_trace(path: Path) -> tuple[TracedSession, ...]:
    """Read a trace, told apart by its suffix (.csv, .jsonl); its first arrival is time 0. Raises FormatError."""
    sessions = sorted(_read(path, TRACES), key=lambda session: session.arrival)
    first = sessions[0].arrival
    return tuple(replace(one, arrival=one.arrival - first) for one in sessions)


def load_traces(paths: Sequence[Path], speed: float = 1.0) -> tuple[TracedSession, ...]:
    """Several traces at once, arriving `speed` times as fast. Raises ConfigError and FormatError."""
    if speed <= 0.0:
        raise ConfigError(f"a trace can arrive faster or slower, but not {speed} times as fast")
    sessions = [replace(one, arrival=one.arrival / speed) for path in paths for one in load_trace(path)]
    return tuple(sorted(sessions, key=lambda session: session.arrival))


def load_lengths(paths: Sequence[Path]) -> tuple[TracedSession, ...]:
    """Lengths alone, of traces or of conversations (.json); arrivals mean nothing. Raises FormatError."""
    return tuple(session for path in paths for session in _read(path, {**TRACES, ".json": _conversations}))


_Reader = Callable[[TextIO, Path], Iterator[TracedSession]]


def _read(path: Path, readers: dict[str, _Reader]) -> list[TracedSession]:
    reader = readers.get(path.suffix)
    if reader is None:
        raise FormatError(f"{path}: its name should end in {' or '.join(readers)}")
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            sessions = list(reader(lines, path))
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read the trace {path}: {error}") from error
    if not sessions:
        raise FormatError(f"{path} holds no sessions")
    return sessions


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


def _conversations(lines: TextIO, path: Path) -> Iterator[TracedSession]:
    """[{"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}, ...]}, ...] (ShareGPT).

    The first question and its answer; conversations that begin otherwise are left out.
    """
    try:
        for entry in json.load(lines):
            turns = entry["conversations"][:2]
            if [_speaker(turn) for turn in turns] == ["human", "gpt"]:
                prompt, output = (_estimated_tokens(turn["value"]) for turn in turns)
                yield _session(0.0, prompt, output)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is not a list of conversations as ShareGPT has it: {error!r}") from error


def _speaker(turn: dict[str, Any]) -> str:
    name = str(turn["from"])
    return {"user": "human", "assistant": "gpt", "chatgpt": "gpt"}.get(name, name)


def _estimated_tokens(text: str) -> int:
    return round(len(text) / CHARACTERS_PER_TOKEN)


def _session(arrival: float, num_prompt: str | int, num_output: str | int) -> TracedSession:
    """Sessions without a prompt or an answer still cost a token of each."""
    return TracedSession(arrival, max(int(num_prompt), 1), max(int(num_output), 1))


TRACES: dict[str, _Reader] = {".csv": _azure, ".jsonl": _mooncake}
