"""Traces in the public forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wisp.errors import ConfigError, FormatError
from wisp.sim.traces import load_lengths, load_trace, load_traces
from wisp.sim.workload import TracedSession


def test_azure_csv_is_read(tmp_path: Path) -> None:
    """Timestamps of seven digits; the first arrival is time 0, and answers of no tokens still take one."""
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:15:46.9951690,374,0\n"
    )
    assert load_trace(path) == (TracedSession(0.0, 374, 1), TracedSession(4.0, 396, 109))


def test_mooncake_lines_are_read(tmp_path: Path) -> None:
    """Milliseconds and lengths; further keys are ignored."""
    path = tmp_path / "mooncake.jsonl"
    path.write_text(
        '{"timestamp": 1000, "input_length": 6758, "output_length": 500, "hash_ids": [1]}\n'
        '{"timestamp": 2500, "input_length": 10, "output_length": 2}\n'
    )
    assert load_trace(path) == (TracedSession(0.0, 6758, 500), TracedSession(1.5, 10, 2))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", "", r"should end in \.csv or \.jsonl"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no sessions"),
        ("a.csv", "TIMESTAMP,ContextTokens\n2023-11-16,4\n", "line 2: not a row of an Azure trace"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnow,4,5\n", "line 2: not a row"),
        ("a.jsonl", '{"timestamp": 1}\n', "line 1: not a row of a Mooncake trace"),
        ("a.jsonl", "[]\n", "line 1: not a row"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    """With the line."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FormatError, match=complaint):
        load_trace(path)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    """Without a traceback."""
    with pytest.raises(FormatError, match="cannot read the trace"):
        load_trace(tmp_path / "missing.csv")


def _mooncake(path: Path, *times: int) -> Path:
    path.write_text("".join(f'{{"timestamp": {time}, "input_length": 5, "output_length": {time}}}\n' for time in times))
    return path


def test_several_traces_are_replayed_at_once(tmp_path: Path) -> None:
    """Each from its own beginning, as much faster as was asked for."""
    paths = [_mooncake(tmp_path / "a.jsonl", 1000, 5000), _mooncake(tmp_path / "b.jsonl", 9000, 11000)]
    found = load_traces(paths, speed=2.0)
    assert [(one.arrival, one.num_output_tokens) for one in found] == [
        (0.0, 1000),
        (0.0, 9000),
        (1.0, 11000),
        (2.0, 5000),
    ]
    with pytest.raises(ConfigError, match="not 0 times as fast"):
        load_traces(paths, speed=0)


def _conversation(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns]}


def test_lengths_of_conversations_are_estimated(tmp_path: Path) -> None:
    """Of the first question and its answer, at 4 characters a token; others are left out."""
    path = tmp_path / "sharegpt.json"
    content = [
        _conversation(("human", "x" * 40), ("gpt", "x" * 100), ("human", "more")),
        _conversation(("user", ""), ("assistant", "ok")),
        _conversation(("gpt", "hello"), ("human", "?")),
        _conversation(("human", "hello")),
    ]
    path.write_text(json.dumps(content))
    assert [(one.num_prompt_tokens, one.num_output_tokens) for one in load_lengths([path])] == [(10, 25), (1, 1)]


def test_lengths_of_traces_can_be_drawn_from_too(tmp_path: Path) -> None:
    """Of several files, without their arrivals."""
    paths = [_mooncake(tmp_path / "a.jsonl", 1000), _mooncake(tmp_path / "b.jsonl", 9000)]
    assert [one.num_output_tokens for one in load_lengths(paths)] == [1000, 9000]


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", "[1]", '[{"conversations": [{"from": "human"}, {"from": "gpt"}]}]']
)
def test_what_holds_no_conversations_is_refused(tmp_path: Path, content: str) -> None:
    """Garbage, other JSON, an empty list."""
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=r"not a list of conversations|holds no sessions"):
        load_lengths([path])
