"""Calibrations on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wisp.errors import FormatError
from wisp.formats.calibration import BatchSample, Calibration, Errors
from wisp.policy.batch_time import BatchShape, BatchTimeModel

CALIBRATION = Calibration(
    model_id="m",
    dtype="float32",
    device="cpu",
    emulated=False,
    samples=(BatchSample(((5, 100), (1, 7)), (0.25, 0.5, 0.75)),),
    model=BatchTimeModel(0.005, 0.0002, ridge_tokens=64.0),
    held_out=Errors(0.05, 0.1, -0.01),
    repeats=Errors(0.02, 0.06),
    source="a test",
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Samples, coefficients and errors; with processor times and without."""
    sample = BatchSample(((5, 100),), (0.5, 0.25), (0.4, 0.2))
    on_cpu = replace(CALIBRATION, samples=(sample,), held_out_cpu=Errors(0.1, 0.2), repeats_cpu=Errors(0.3, 0.4))
    for calibration in (CALIBRATION, on_cpu):
        calibration.save(tmp_path / "profile.json")
        assert Calibration.load(tmp_path / "profile.json") == calibration


def test_members_that_are_alike_are_written_once(tmp_path: Path) -> None:
    """With their number; a file stays small."""
    members = ((9, 5), *((1, 100),) * 200, (9, 5))
    replace(CALIBRATION, samples=(BatchSample(members, (1.0,)),)).save(tmp_path / "profile.json")
    content = json.loads((tmp_path / "profile.json").read_text())
    assert content["samples"][0]["members"] == [[9, 5], [1, 100, 200], [9, 5]]
    assert Calibration.load(tmp_path / "profile.json").samples[0].members == members


def test_a_sample_knows_its_shape_and_its_median() -> None:
    """The median of the repeats is taken for the truth."""
    (sample,) = CALIBRATION.samples
    assert (sample.shape, sample.time) == (BatchShape(6, 5 * 102.5 + 7.5, 107, 2), 0.5)
    assert BatchSample(sample.members, (1.0,), (0.8, 0.9)).on_cpu == BatchSample(sample.members, (0.8, 0.9))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "other"}, "is not a wisp-calibration of version 1"),
        ({"version": 2}, "is not a wisp-calibration of version 1"),
        ({"dtype": 3}, "is damaged"),
        ({"emulated": "no"}, "is damaged"),
        ({"samples": [{"members": [], "times": [1.0]}]}, "a sample has members"),
        ({"samples": [{"members": [[1, 2]], "times": [0.0]}]}, "positive times"),
        ({"samples": [{"members": [[1]], "times": [1.0]}]}, "is damaged"),
        ({"samples": [{"members": [[1, 2]], "times": [1.0], "cpu_times": [0.0]}]}, "positive times"),
        ({"samples": [{"members": [[0, 2]], "times": [1.0]}]}, "at least one position"),
        ({"samples": [{"members": [[1, -2]], "times": [1.0]}]}, "no fewer cached tokens"),
        ({"samples": [{"members": [[1, 2, 0]], "times": [1.0]}]}, "at least one position"),
        ({"samples": 3}, "is damaged"),
        ({"held_out_cpu": 3}, "is damaged"),
        ({"samples": [{"members": [[1, 2, 3, 4]], "times": [1.0]}]}, "is damaged"),
        ({"source": 3}, "source are texts"),
        ({"model": {"fixed_s": 1.0}}, "per_token_s"),
        ({"held_out": {"mean": "1", "p95": 1.0, "bias": 0.0}}, "'1' is not a number"),
        ({"repeats": {"mean": float("inf"), "p95": 1.0, "bias": 0.0}}, "inf is not a number"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    """The message says what is wrong and what to do."""
    path = tmp_path / "profile.json"
    CALIBRATION.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=complaint) as raised:
        Calibration.load(path)
    assert "wisp calibrate" in str(raised.value)


def test_negative_coefficients_are_refused(tmp_path: Path) -> None:
    """A batch never takes less time for having more in it."""
    path = tmp_path / "profile.json"
    CALIBRATION.save(path)
    content = json.loads(path.read_text())
    content["model"]["fixed_s"] = -1.0
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"-1.0 is negative"):
        Calibration.load(path)


def test_what_cannot_be_read_or_written_is_refused(tmp_path: Path) -> None:
    """Neither a missing file, garbage nor a missing folder is a traceback."""
    with pytest.raises(FormatError, match="cannot read"):
        Calibration.load(tmp_path / "nothing.json")
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    with pytest.raises(FormatError, match="cannot read"):
        Calibration.load(tmp_path / "binary.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(FormatError, match="is not a wisp-calibration"):
        Calibration.load(tmp_path / "list.json")
    with pytest.raises(FormatError, match="cannot write"):
        CALIBRATION.save(tmp_path / "no" / "folder.json")


def test_a_calibration_is_of_one_model_and_device() -> None:
    """Times of another model, number format or device would mislead."""
    CALIBRATION.require("m", "float32", "cpu", path=Path("profile.json"))
    for other in (("n", "float32", "cpu"), ("m", "bfloat16", "cpu"), ("m", "float32", "gpu")):
        with pytest.raises(FormatError, match="was measured with m float32 cpu, not with"):
            CALIBRATION.require(*other, path=Path("profile.json"))
