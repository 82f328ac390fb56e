"""Small traces for tests: of the fake pair, and made up."""

from __future__ import annotations

import numpy as np

from wisp.formats.trace import Chain, PairIdentity, TraceHeader, TraceRecord
from wisp.types import DraftStats

PAIR = PairIdentity("target", "1" * 64, "draft", "2" * 64, "3" * 64)


def header(rule: str = "greedy", temperature: float = 0.0, max_tokens: int = 24) -> TraceHeader:
    return TraceHeader(PAIR, rule, temperature, 1.0, seed=5, max_tokens=max_tokens, chain_length=12)


def made_up_record(prompt: int, rng: np.random.Generator, num_tokens: int = 24) -> TraceRecord:
    """Tokens are accepted with probability sigmoid(margin): the margin is all there is to know."""
    chains = []
    for position in range(num_tokens):
        margins = rng.normal(1.0, 2.0, 12)
        accepted = rng.random(12) < 1.0 / (1.0 + np.exp(-margins))
        room = num_tokens - position
        run = 12 if accepted.all() else int(accepted.argmin())
        num_accepted = min(run, room)
        noise = rng.normal(size=(12, 3))
        stats = tuple(
            DraftStats(0.5, abs(float(b)), float(m), abs(float(c)) + 0.1, 0.5)
            for m, (_, b, c) in zip(margins, noise, strict=True)
        )
        judged = min(num_accepted + 1, 12, room)
        chains.append(Chain(tuple(range(12)), stats, num_accepted, judged))
    return TraceRecord(prompt, f"#{prompt}", tuple(range(num_tokens + 3)), 3, tuple(chains), 0.01, 0.002)


def made_up_records(num_prompts: int, seed: int = 1) -> list[TraceRecord]:
    rng = np.random.default_rng(seed)
    return [made_up_record(index, rng) for index in range(num_prompts)]
