"""How one request is generated, in the device's own terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wisp.edge.target import TargetInfo
from wisp.types import AcceptanceRule, SamplingParams, TokenId


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How each choice of a request is generated."""

    sampling: SamplingParams
    max_tokens: int | None
    """None: as many as the context allows."""
    stop_token_ids: frozenset[TokenId]
    stop_strings: tuple[str, ...]
    num_choices: int = 1
    slo: str | None = None
    num_draft_tokens: int | None = None
    """None: as the device is configured."""
    stop_rule: str | None = None
    stop_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the device decides where a request is silent."""

    target: TargetInfo
    rule: AcceptanceRule
    slo: str | None
    new_seed: Callable[[], int]
    """Draws an unsigned 64-bit seed for a request that names none."""
    stop_rules: tuple[str, ...]
    """Those that a request may name."""
