"""The log of batches: what is written is what is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wisp.errors import FormatError
from wisp.formats.batch_log import LoggedBatch, LoggedMember, header_line, read_batch_log
from wisp.policy.batch_time import BatchShape

BATCH = LoggedBatch(1.5, 0.25, 0.125, False, (LoggedMember(5, 64, True, 1.25), LoggedMember(128, 0, False, 1.0)), 0.5)


def test_batches_are_read_as_they_were_written(tmp_path: Path) -> None:
    """All fields, in order."""
    path = tmp_path / "batches.jsonl"
    drafted = replace(BATCH, drafted=True)
    path.write_text(header_line() + BATCH.line() + drafted.line())
    assert read_batch_log(path) == [BATCH, drafted]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    """The server may still run."""
    path = tmp_path / "batches.jsonl"
    path.write_text(header_line() + BATCH.line() + BATCH.line()[:20])
    assert read_batch_log(path) == [BATCH]


@pytest.mark.parametrize("content", ["", "{}\n", header_line() + "{}\n", header_line() + "broken\n"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    """By name."""
    path = tmp_path / "batches.jsonl"
    path.write_text(content)
    with pytest.raises(FormatError, match=r"batches\.jsonl"):
        read_batch_log(path)


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    """As a FormatError."""
    with pytest.raises(FormatError, match="cannot read the batch log"):
        read_batch_log(tmp_path / "none.jsonl")


def test_the_shape_of_a_batch_is_that_of_its_members() -> None:
    """In the estimator's terms."""
    assert BATCH.shape == BatchShape.of_members([(5, 64), (128, 0)])
