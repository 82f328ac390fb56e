"""Profiles of batch times by name: those that ship with WISP; anything else is the path of a calibration file."""

from __future__ import annotations

from pathlib import Path

from wisp.errors import FormatError
from wisp.formats.calibration import Calibration

FOLDER = Path(__file__).parent / "profiles"


def names() -> list[str]:
    """Of the profiles that ship with WISP."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_profile(name: str) -> Calibration:
    """A shipped profile, or a file of `wisp calibrate`. Raises FormatError."""
    if name in names():
        return Calibration.load(FOLDER / f"{name}.json")
    path = Path(name)
    if not path.exists():
        raise FormatError(
            f"there is no profile {name!r}: give the path of a calibration, or one of {', '.join(names())}"
        )
    return Calibration.load(path)
