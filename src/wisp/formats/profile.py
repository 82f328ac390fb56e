"""How long a verification batch takes on some hardware: t = fixed + a * new + b * cached + c * requests."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from wisp.errors import FormatError

FORMAT = "wisp-batch-time-profile"
VERSION = 1


@dataclass(frozen=True, slots=True)
class BatchTimeProfile:
    """Seconds, none of them negative."""

    fixed_s: float
    """A step costs this whatever is in it: reading the weights, launching kernels."""
    per_token_s: float
    """Per position computed."""
    per_cached_token_s: float = 0.0
    """Per cached token that is attended to."""
    per_request_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0.0):
                raise FormatError(f"{name} must be a number of seconds, not {value}")

    def __call__(self, num_new_tokens: int, num_cached_tokens: int, num_requests: int) -> float:
        """Seconds that a batch takes."""
        return (
            self.fixed_s
            + self.per_token_s * num_new_tokens
            + self.per_cached_token_s * num_cached_tokens
            + self.per_request_s * num_requests
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> BatchTimeProfile:
        """Read what `save` wrote. Raises FormatError."""
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise FormatError(f"cannot read the profile {path}: {error}") from error
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise FormatError(f"{path} is not a {FORMAT} of version {VERSION}")
        given = {field.name: content.get(field.name) for field in fields(cls)}
        wrong = [name for name, value in given.items() if isinstance(value, bool) or not isinstance(value, int | float)]
        if wrong:
            raise FormatError(f"{path}: {', '.join(wrong)} must be numbers")
        return cls(**{name: float(value) for name, value in given.items() if value is not None})
