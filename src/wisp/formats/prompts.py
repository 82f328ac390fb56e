"""Prompts that a user names: text lines, JSON lines, or a JSON list as ShareGPT has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wisp.errors import FormatError


@dataclass(frozen=True, slots=True)
class NamedPrompt:
    """A prompt, and what it is called in reports."""

    name: str
    text: str


def read_prompts(path: Path) -> list[NamedPrompt]:
    """The prompts of a file, empty ones left out. Raises FormatError.

    `.json`: a list; `.jsonl`: one entry a line; anything else: one prompt a line. An entry is a string, or an object with
    `prompt`, `text`, `messages` (the first of the user) or `conversations` (ShareGPT; the first of the human).
    """
    try:
        content = path.read_text(encoding="utf-8")
        prompts = [NamedPrompt(name, text) for name, text in _entries(path, content) if text.strip()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"cannot read prompts from {path}: {error!r}") from error
    if not prompts:
        raise FormatError(f"{path} holds no prompts")
    return prompts


def _entries(path: Path, content: str) -> Iterator[tuple[str, str]]:
    lines = content.splitlines()
    entries: list[Any] = lines
    if path.suffix == ".json":
        entries = json.loads(content)
        if not isinstance(entries, list):
            raise TypeError("a list of prompts was expected")
    elif path.suffix == ".jsonl":
        entries = [json.loads(line) for line in lines if line.strip()]
    for index, entry in enumerate(entries):
        name = entry.get("name", entry.get("file", entry.get("id"))) if isinstance(entry, dict) else None
        yield f"#{index}" if name is None else str(name), _text(entry)


def _text(entry: Any) -> str:
    if isinstance(entry, dict):
        entry = _of_object(entry)
    if not isinstance(entry, str):
        raise TypeError(f"a prompt should be text, not {entry!r}")
    return entry


def _of_object(entry: dict[str, Any]) -> Any:
    for field in ("prompt", "text"):
        if field in entry:
            return entry[field]
    if "messages" in entry:
        return next((turn["content"] for turn in entry["messages"] if turn["role"] == "user"), "")
    return next((turn["value"] for turn in entry["conversations"] if turn["from"] in ("human", "user")), "")
