"""Drives a target engine as a server would, with drafts that are partly right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tests.engines import tiny_models
from wisp.engines.base import StepMember, StepOutcome, TargetEngine
from wisp.types import Batch, DraftedToken, GenerationRequest, SamplingParams, StopRules, VerificationRequest


def request(
    tokens: Sequence[int],
    max_tokens: int = 64,
    sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
    stop: frozenset[int] = frozenset(),
    num_prompt_tokens: int | None = None,
) -> GenerationRequest:
    num = len(tokens) if num_prompt_tokens is None else num_prompt_tokens
    return GenerationRequest(tuple(tokens), num, sampling, StopRules(max_tokens, stop))


def drafted(tokens: Sequence[int]) -> tuple[DraftedToken, ...]:
    return tuple(DraftedToken(token) for token in tokens)


def member(target: TargetEngine, session_id: str, draft: Sequence[int] = ()) -> StepMember:
    """All of the prefill that is left, and a draft."""
    prefill = len(target.history(session_id)) - 1 - target.num_cached_tokens(session_id)
    return StepMember(session_id, prefill, drafted(draft))


def finish(target: TargetEngine, session_id: str) -> StepOutcome:
    """Plain decoding to the end."""
    while (outcome := target.step([member(target, session_id)])[0]).finish_reason is None:
        pass
    return outcome


def drive(
    target: TargetEngine, truth: Mapping[str, Sequence[int]], seed: int, evict: float = 0.1, most: int = 64
) -> dict[str, int]:
    """Finish all sessions in random ragged batches of at most `most`; returns how many drafted tokens were accepted.

    Drafts are right prefixes of `truth` with wrong ends.
    """
    rng = np.random.default_rng(seed)
    running, accepted = list(truth), dict.fromkeys(truth, 0)
    while running:
        for session_id in running:
            if rng.random() < evict:
                target.evict(session_id)
        chosen = [session_id for session_id in running if rng.random() < 0.7][:most] or running[:1]
        members = [random_member(target, session_id, truth[session_id], rng) for session_id in chosen]
        for one, outcome in zip(members, target.step(members), strict=True):
            accepted[one.session_id] += outcome.num_accepted
            if outcome.finish_reason is not None:
                running.remove(one.session_id)
    return accepted


def random_member(target: TargetEngine, session_id: str, truth: Sequence[int], rng: np.random.Generator) -> StepMember:
    """A chunk of the prefill, or the rest of it and a draft of 0 to 8 tokens."""
    history = target.history(session_id)
    uncached = len(history) - 1 - target.num_cached_tokens(session_id)
    chunk = int(rng.integers(1, 20))
    if chunk < uncached:
        return StepMember(session_id, chunk)
    right = list(truth[len(history) : len(history) + int(rng.integers(0, 6))])
    wrong = rng.integers(2, tiny_models.VOCABULARY_SIZE, int(rng.integers(0, 4))).tolist()
    return StepMember(session_id, uncached, drafted((right + wrong)[:8]))


def arrival(target: TargetEngine, session_id: str, now: float) -> VerificationRequest:
    """A request to verify three tokens."""
    num_history, num_cached = len(target.history(session_id)), target.num_cached_tokens(session_id)
    return VerificationRequest(session_id, 0, num_history, num_cached, 3, now)


def as_members(batch: Batch, target: TargetEngine, truth: dict[str, list[int]]) -> list[StepMember]:
    """A batch in the engine's words; of each draft the first two tokens are right."""
    members = []
    for one in batch.members:
        session_id = one.request.session_id
        num_history = len(target.history(session_id))
        draft = [*truth[session_id][num_history : num_history + 2], 3, 3, 3][: one.num_verified or 0]
        members.append(StepMember(session_id, one.num_prefill_tokens, drafted(draft) if one.completes else None))
    return members
