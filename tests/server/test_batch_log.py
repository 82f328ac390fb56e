"""The server writes down its batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from wisp.errors import ConfigError
from wisp.formats.batch_log import LoggedMember, read_batch_log
from wisp.server.batch_log import batch_log
from wisp.server.loop import BatchRecord
from wisp.types import Batch, BatchMember, VerificationRequest


def _record(started: float) -> BatchRecord:
    request = VerificationRequest("s", 1, num_history_tokens=11, num_cached_tokens=8, num_draft_tokens=4, arrival=0.5)
    return BatchRecord(Batch((BatchMember(request, 2, 4), BatchMember(request, 1, None))), started, 0.25, waited=0.125)


def test_every_batch_is_on_disk_afterwards(tmp_path: Path) -> None:
    """In order, with what each member did."""
    path = tmp_path / "batches.jsonl"
    with batch_log(path) as observe:
        for started in (1.0, 2.0, 3.0):
            observe(_record(started))
    batches = read_batch_log(path)
    assert [batch.started for batch in batches] == [1.0, 2.0, 3.0]
    assert batches[0].waited == 0.125
    assert batches[0].members == (LoggedMember(7, 8, True, 0.5), LoggedMember(1, 8, False, 0.5))


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Before the server takes devices."""
    with pytest.raises(ConfigError, match="cannot write the batch log"), batch_log(tmp_path / "none" / "log.jsonl"):
        pass
