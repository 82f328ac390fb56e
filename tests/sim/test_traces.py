"""Traces in the public forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from wisp.errors import FormatError
from wisp.sim.traces import load_trace
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
        ("a.txt", "", r"traces end in \.csv or \.jsonl"),
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
