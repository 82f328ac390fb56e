"""The pair of tiny models that ships with the package, its predictor, and its held-out prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from wisp.errors import FormatError

MODELS = Path(__file__).parent / "models"
TARGET = MODELS / "target"
DRAFT = MODELS / "draft"
PREDICTOR = MODELS / "predictor.json"
"""Of accepted drafts; made by `wisp train` (docs/results.md)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of some code that the pair was not trained on."""

    file: str
    text: str


def heldout_prompts(path: Path = MODELS / "heldout.json") -> list[Prompt]:
    """Prompts from files that were held out of the training. Raises FormatError."""
    try:
        return [Prompt(entry["file"], entry["prompt"]) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path.name} should list held-out prompts, with file and prompt: {error!r}") from error
