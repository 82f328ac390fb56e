"""Verification rounds of WISP's engine on vLLM, beside the same on transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from rich.progress import Progress

from wisp.bench.timing import Ratio, interleave, ratio
from wisp.engines.base import StepMember, TargetEngine
from wisp.types import DraftedToken, GenerationRequest, SamplingParams, StopRules

NUM_REQUESTS = (1, 8, 32)
NUM_NEW_TOKENS = (1, 4, 8)
"""Positions that a round computes of each request: its last token and the draft."""
NUM_CACHED_TOKENS = 64
"""Of each request, when the first round begins."""


def round_ratios(engines: Mapping[str, TargetEngine], rounds: int, progress: Progress, label: str) -> Iterator[Ratio]:
    """The time of the first engine in units of the second's, for each batch of NUM_REQUESTS x NUM_NEW_TOKENS."""
    name, reference = engines
    for num_requests in NUM_REQUESTS:
        for num_new_tokens in NUM_NEW_TOKENS:
            what = f"{label}, {num_requests} x {num_new_tokens} new tokens"
            alternatives = {
                each: partial(_round, engine, _opened(engine, num_requests), num_new_tokens - 1, _rng())
                for each, engine in engines.items()
            }
            yield ratio(interleave(alternatives, rounds, progress, what), name, reference, what)


def _opened(engine: TargetEngine, num_requests: int) -> list[str]:
    """Sessions with cached prompts."""
    rng, names = _rng(), [f"round {index}" for index in range(num_requests)]
    for name in names:
        tokens = tuple(rng.integers(0, engine.card.vocabulary_size, NUM_CACHED_TOKENS + 1).tolist())
        num_cached = engine.open(
            name, "bench", GenerationRequest(tokens, len(tokens), SamplingParams(), StopRules(512))
        )
        if num_prefill := NUM_CACHED_TOKENS - num_cached:
            engine.step([StepMember(name, num_prefill)])
    return names


def _round(engine: TargetEngine, names: list[str], num_drafted: int, rng: np.random.Generator) -> None:
    """One batch; what is drafted is chance, and most of it is rejected."""
    drafts = rng.integers(0, engine.card.vocabulary_size, (len(names), num_drafted)).tolist()
    engine.step(
        [StepMember(name, 0, tuple(map(DraftedToken, draft))) for name, draft in zip(names, drafts, strict=True)]
    )


def _rng() -> np.random.Generator:
    """The same for every engine: each gets the same prompts and drafts."""
    return np.random.default_rng(7)
