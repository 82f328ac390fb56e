"""A fleet of devices described in a JSON file, with the names of the options that it stands for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from wisp.errors import FormatError
from wisp.sim.options import SimulationOptions

FIELDS: dict[str, type] = {
    "draft_speed": str,
    "rtt_ms": str,
    "jitter_ms": float,
    "loss": float,
    "acceptance": float,
    "auc": float,
    "think": float,
}
"""Of SimulationOptions, what a fleet file may say; ranges as text (LOW-HIGH) or as one number."""


def with_fleet(options: SimulationOptions, path: Path) -> SimulationOptions:
    """The options with what the file says of the devices. Raises FormatError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read the fleet {path}: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"the fleet {path} is not one JSON object")
    unknown = [name for name in content if name not in FIELDS]
    if unknown:
        raise FormatError(f"the fleet {path} says {', '.join(unknown)}, which is not one of {', '.join(FIELDS)}")
    return replace(options, **{name: _typed(path, name, value) for name, value in content.items()})


def _typed(path: Path, name: str, value: Any) -> Any:
    wanted = FIELDS[name]
    if isinstance(value, bool) or not isinstance(value, (int | float | str) if wanted is str else (int | float)):
        raise FormatError(f"the fleet {path}: {name} cannot be {json.dumps(value)}")
    return wanted(value)
