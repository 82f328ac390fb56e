"""A packed step against separate steps, and against a bare forward of as many tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM

from wisp.bench.timing import Ratio, interleave, ratio
from wisp.engines.base import StepMember
from wisp.engines.target import TransformersTarget
from wisp.types import DraftedToken, GenerationRequest, SamplingParams, StopRules

NUM_SESSIONS = 8
NUM_DRAFTED = 4
CACHED_LENGTHS = (64, 512)


def engine_ratios(model: Path, rounds: int, progress: Progress) -> Iterator[Ratio]:
    """Batches of 8 requests with 4 drafted tokens each, at each cached length."""
    engine = TransformersTarget.load(str(model))
    bare = _bare(model)
    size = f"{sum(weight.numel() for weight in bare.parameters()) / 1e6:.0f}M"
    rng = np.random.default_rng(7)
    num_tokens = NUM_SESSIONS * (NUM_DRAFTED + 1)
    ids = torch.from_numpy(rng.integers(0, engine.card.vocabulary_size, (1, num_tokens)))

    def bare_forward() -> None:
        with torch.inference_mode():
            bare(ids, use_cache=False)

    for cached in CACHED_LENGTHS:
        names = [f"{cached}-{index}" for index in range(NUM_SESSIONS)]
        for name in names:
            _open(engine, name, rng.integers(0, engine.card.vocabulary_size, cached + 1).tolist())
        alternatives: dict[str, Callable[[], object]] = {
            "packed step": partial(_packed_step, engine, names, rng),
            "separate steps": partial(_separate_steps, engine, names, rng),
            "bare forward": bare_forward,
        }
        label = f"{size}, {NUM_SESSIONS} x {NUM_DRAFTED} drafted, {cached} cached"
        times = interleave(alternatives, rounds, progress, label)
        yield ratio(times, "packed step", "bare forward", label)
        yield ratio(times, "packed step", "separate steps", label)


def _bare(model: Path) -> Any:
    bare: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return bare.eval()


def _packed_step(engine: TransformersTarget, names: list[str], rng: np.random.Generator) -> None:
    engine.step([_member(engine, name, rng) for name in names])


def _separate_steps(engine: TransformersTarget, names: list[str], rng: np.random.Generator) -> None:
    for name in names:
        engine.step([_member(engine, name, rng)])


def _open(engine: TransformersTarget, name: str, tokens: list[int]) -> None:
    request = GenerationRequest(tuple(tokens), len(tokens), SamplingParams(), StopRules(512))
    engine.open(name, "bench", request)
    engine.step([StepMember(name, len(tokens) - 1, ())])


def _member(engine: TransformersTarget, name: str, rng: np.random.Generator) -> StepMember:
    drafted = rng.integers(0, engine.card.vocabulary_size, NUM_DRAFTED).tolist()
    return StepMember(name, 0, tuple(DraftedToken(token) for token in drafted))
