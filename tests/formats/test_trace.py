"""Trace files: written line by line, read back, gone on with, refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.traces import header, made_up_records
from wisp.errors import FormatError
from wisp.formats.trace import TraceRecord, TraceWriter, read_trace, read_trace_sets, read_traces


def rounded(records: list[TraceRecord]) -> list[tuple[object, ...]]:
    return [(r.prompt, r.tokens, [(c.tokens, c.num_accepted, c.num_judged) for c in r.chains]) for r in records]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_what_is_appended_is_read(tmp_path: Path, name: str) -> None:
    """Records survive, statistics to six digits."""
    records = made_up_records(2)
    writer = TraceWriter(tmp_path / name, header())
    for record in records:
        writer.append(record)
    found_header, found = read_trace(tmp_path / name)
    assert found_header == header()
    assert rounded(found) == rounded(records)
    assert found[0].chains[0].stats[0].margin == pytest.approx(records[0].chains[0].stats[0].margin, rel=1e-5)
    assert TraceWriter(tmp_path / name, header()).records == found


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_torn_end_is_dropped_when_the_recording_goes_on(tmp_path: Path, name: str) -> None:
    """What an interrupted run left is not mistaken for a record."""
    path = tmp_path / name
    writer = TraceWriter(path, header())
    for record in made_up_records(2):
        writer.append(record)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FormatError):
        read_trace(path)
    again = TraceWriter(path, header())
    assert [record.prompt for record in again.records] == [0]
    again.append(made_up_records(2)[1])
    assert [record.prompt for record in read_trace(path)[1]] == [0, 1]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """A file is not gone on with under another header, nor are such files added up; the message names the field."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    TraceWriter(a, header()).append(made_up_records(1)[0])
    other = replace(header(), pair=replace(header().pair, target_weights="9"))
    with pytest.raises(FormatError, match="target_weights"):
        TraceWriter(a, other)
    TraceWriter(b, other)
    with pytest.raises(FormatError, match="target_weights"):
        read_traces([a, b])
    assert len(read_traces([a, a])[1]) == 2
    with pytest.raises(FormatError, match="no trace"):
        read_traces([])


def test_sets_of_one_pair(tmp_path: Path) -> None:
    """Files with equal headers are one set, those with other settings another; other models are refused."""
    paths = [tmp_path / f"{name}.jsonl" for name in "abcd"]
    other = replace(header(), pair=replace(header().pair, draft_weights="9"))
    for path, given in zip(paths, (header(), header("coupled", 0.8), header(), other), strict=True):
        TraceWriter(path, given).append(made_up_records(1)[0])
    sets = read_trace_sets(paths[:3])
    assert [(given.condition, len(records)) for given, records in sets] == [
        ("greedy", 2),
        ("coupled, temperature 0.8", 1),
    ]
    with pytest.raises(FormatError, match="other models: draft_weights"):
        read_trace_sets(paths)
    with pytest.raises(FormatError, match="no trace"):
        read_trace_sets([])


def test_conditions_in_words() -> None:
    """The nucleus is named where there is one."""
    assert replace(header("rejection", 0.5), top_p=0.9).condition == "rejection, temperature 0.5, top-p 0.9"


@pytest.mark.parametrize(
    ("line", "change", "complaint"),
    [
        (0, {"format": "other"}, "is not a wisp-trace"),
        (0, {"version": 9}, r"of version 9, this WISP reads version 1.*anew with `wisp trace`"),
        (0, {"statistics": []}, "other statistics"),
        (0, {"pair": 3}, "is not a trace"),
        (1, {"chains": [{"tokens": [1], "stats": [], "accepted": 0, "judged": 0}]}, "line 2"),
        (1, {"tokens": None}, "line 2"),
        (1, {"tokens": [1, 2]}, "line 2.*one chain per token"),
        (1, {"tokens": ["a"]}, "line 2.*'a' should be a number"),
        (1, {"num_prompt_tokens": 1.5}, "line 2.*without a fraction"),
        (1, {"prompt": True}, "line 2.*True should be"),
        (1, {"draft_token_s": "fast"}, "line 2.*'fast' should be a number"),
        (
            1,
            {"chains": [{"tokens": [1], "stats": [["x", 0, 0, 0, 0, None]], "accepted": 0, "judged": 0}]},
            "'x' should",
        ),
        (1, {"chains": [{"tokens": [1], "stats": [[0, 0, 0, 0, 0]], "accepted": 0, "judged": 0}]}, "line 2"),
        (1, {"chains": [{"tokens": [1], "stats": [[0, 0, 0, 0, 0, None]], "accepted": -1, "judged": 0}]}, "-1 should"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, line: int, change: dict[str, object], complaint: str) -> None:
    """The message says where."""
    path = tmp_path / "t.jsonl"
    writer = TraceWriter(path, header())
    for record in made_up_records(2):
        writer.append(record)
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **change})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(FormatError, match=complaint):
        read_trace(path)


def test_damage_before_the_end_is_no_torn_end(tmp_path: Path) -> None:
    """A file that is damaged is not gone on with: the records behind the damage would be lost."""
    path = tmp_path / "t.jsonl.gz"
    writer = TraceWriter(path, header())
    for record in made_up_records(2):
        writer.append(record)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(FormatError, match="cannot read the trace"):
        read_trace(path)
    with pytest.raises(FormatError, match="cannot read the trace"):
        TraceWriter(path, header())


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """Missing, empty, and not gzipped in spite of the name."""
    with pytest.raises(FormatError, match="cannot read"):
        read_trace(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(FormatError, match="is not a trace"):
        read_trace(tmp_path / "empty.jsonl")
    (tmp_path / "plain.gz").write_text("{}")
    with pytest.raises(FormatError, match="cannot read"):
        read_trace(tmp_path / "plain.gz")
    (tmp_path / "list.gz").write_bytes(gzip.compress(b"[]\n"))
    with pytest.raises(FormatError):
        read_trace(tmp_path / "list.gz")
