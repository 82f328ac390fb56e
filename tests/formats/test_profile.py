"""Batch-time profiles on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wisp.errors import FormatError
from wisp.formats.profile import BatchTimeProfile


def test_a_profile_is_linear_in_its_terms() -> None:
    """T = fixed + a * new + b * cached + c * requests."""
    assert BatchTimeProfile(0.5, 0.25, 0.125, 2.0)(2, 8, 3) == 0.5 + 0.5 + 1.0 + 6.0


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Every field survives."""
    profile = BatchTimeProfile(0.005, 0.0002, 1e-7, 2e-5)
    profile.save(tmp_path / "profile.json")
    assert BatchTimeProfile.load(tmp_path / "profile.json") == profile


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "other"}, "is not a"),
        ({"version": 2}, "is not a"),
        ({"fixed_s": "1"}, "fixed_s must be numbers"),
        ({"per_token_s": None}, "per_token_s"),
        ({"per_token_s": -1.0}, "per_token_s must be a number of seconds"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    """The message names the field."""
    path = tmp_path / "profile.json"
    BatchTimeProfile(0.005, 0.0002).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=complaint):
        BatchTimeProfile.load(path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    """Neither a missing file nor garbage is a traceback."""
    with pytest.raises(FormatError, match="cannot read"):
        BatchTimeProfile.load(tmp_path / "nothing.json")
    (tmp_path / "garbage.json").write_text("{")
    with pytest.raises(FormatError, match="cannot read"):
        BatchTimeProfile.load(tmp_path / "garbage.json")
