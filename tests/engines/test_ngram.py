"""NgramDrafter: what it proposes is what a search of the whole history finds, whatever was rolled back."""

from __future__ import annotations

import numpy as np
import pytest

from wisp.engines.ngram import NgramDrafter
from wisp.errors import ConfigError, EngineError
from wisp.types import DraftedToken, GenerationRequest, SamplingParams, StopRules


def request(tokens: list[int]) -> GenerationRequest:
    return GenerationRequest(tuple(tokens), len(tokens), SamplingParams(), StopRules(100))


def proposal(tokens: list[int], max_ngram: int) -> int | None:
    """By the definition: the longest suffix that occurred before, its most recent occurrence, the token after it."""
    for n in range(min(max_ngram, len(tokens)), 0, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                return tokens[end]
    return None


@pytest.mark.parametrize("max_ngram", [1, 2, 4])
def test_proposals_are_those_of_a_full_search(max_ngram: int) -> None:
    """Through random drafts, commits and rollbacks."""
    rng = np.random.default_rng(max_ngram)
    drafter = NgramDrafter(max_ngram)
    histories = {name: rng.integers(0, 5, 1 + i * 7).tolist() for i, name in enumerate("abc")}
    for name, history in histories.items():
        drafter.open(name, request(history))
    for _ in range(60):
        drafts: dict[str, list[int]] = {name: [] for name in histories}
        for _ in range(int(rng.integers(0, 7))):
            for name, drafted in zip(histories, drafter.draft(list(histories)), strict=True):
                tokens = histories[name] + drafts[name]
                expected = proposal(tokens, max_ngram)
                assert drafted == (None if expected is None else DraftedToken(expected))
                drafts[name] += [] if expected is None else [expected]
        for name, draft in drafts.items():
            accepted = int(rng.integers(0, len(draft) + 1))
            correction = rng.integers(0, 6, int(rng.integers(0, 3))).tolist()
            drafter.commit(name, accepted, correction)
            histories[name] = histories[name] + draft[:accepted] + correction


def test_nothing_is_proposed_after_something_new() -> None:
    """No model stands behind it: no vocabulary, no statistics, and no guess without a precedent."""
    drafter = NgramDrafter()
    assert drafter.vocabulary is None
    drafter.open("s", request([1, 2, 3]))
    assert drafter.draft(["s"]) == [None]
    drafter.commit("s", 0, [1])
    assert drafter.draft(["s"]) == [DraftedToken(2)]
    drafter.open("s", request([1, 2, 3]))
    assert drafter.draft(["s"]) == [None]
    drafter.close("s")
    with pytest.raises(EngineError, match="no session"):
        drafter.draft(["s"])
    drafter.shutdown()


def test_misuse_is_refused() -> None:
    """n-grams have at least one token; no more can be accepted than was drafted."""
    with pytest.raises(ConfigError, match="at least 1"):
        NgramDrafter(0)
    drafter = NgramDrafter()
    drafter.open("s", request([1, 2, 1]))
    drafter.draft(["s"])
    with pytest.raises(EngineError, match="2 of 1"):
        drafter.commit("s", 2, [])
