"""Prompts in the forms that people have them in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wisp.errors import FormatError
from wisp.formats.prompts import NamedPrompt, read_prompts


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\ntwo\n", [("#0", "one"), ("#2", "two")]),
        ("a.jsonl", '{"prompt": "one", "name": "first"}\n\n{"text": "two"}\n"three"\n', None),
        ("a.json", json.dumps([{"prompt": "one", "file": "f.py"}]), [("f.py", "one")]),
        (
            "a.json",
            json.dumps(
                [
                    {"id": "x", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
                    {"conversations": []},
                ]
            ),
            [("x", "hi")],
        ),
        (
            "a.json",
            json.dumps(
                [{"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]}]
            ),
            [("#0", "hello")],
        ),
    ],
)
def test_known_forms(tmp_path: Path, name: str, content: str, expected: list[tuple[str, str]] | None) -> None:
    """Lines, JSON lines, lists of objects, conversations, messages."""
    (tmp_path / name).write_text(content)
    wanted = expected or [("first", "one"), ("#1", "two"), ("#2", "three")]
    assert read_prompts(tmp_path / name) == [NamedPrompt(*entry) for entry in wanted]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "{}"), ("a.json", "["), ("a.jsonl", "3\n"), ("a.jsonl", '{"question": 1}\n'), ("a.txt", "\n \n")],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    """With the path in the message."""
    (tmp_path / name).write_text(content)
    with pytest.raises(FormatError, match=name):
        read_prompts(tmp_path / name)
    with pytest.raises(FormatError, match="missing"):
        read_prompts(tmp_path / "missing.txt")
