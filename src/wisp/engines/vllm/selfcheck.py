"""The load-time check that verifying a draft gives what decoding token by token gives.

It runs over what serving uses: ragged batches, rejected drafts, rolled back caches, WISP's sampler in vLLM's workers.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from wisp.engines.base import StepMember
from wisp.engines.packed.residency import common_prefix
from wisp.engines.sampling import Decision
from wisp.errors import UnsupportedModel
from wisp.types import DraftedToken, GenerationRequest, SamplingParams, SessionId, StopRules, TokenId

TOLERANCES = {"float32": 1e-3, "float16": 0.05}
"""Largest mean difference of log-probabilities, in nats; what is wrong by a position differs by whole nats."""
_LOOSEST = 0.2
_LENGTHS = (3, 17, 40)
_NUM_TOKENS, _NUM_WRONG = 6, 2
_OWNER = "self-check"


class Core(Protocol):
    """What is checked: VllmCore."""

    def open(self, session_id: SessionId, owner: str, generation: GenerationRequest) -> int:
        """Start a session."""
        ...

    def step(self, members: list[StepMember]) -> list[Decision | None]:
        """Compute a batch."""
        ...

    def close(self, session_id: SessionId) -> None:
        """End a session."""
        ...


def check(core: Core, vocabulary_size: int, context_length: int, dtype: str) -> None:
    """Raise UnsupportedModel unless verified tokens have the log-probabilities that decoded ones have."""
    rng = np.random.default_rng(0)
    longest = max(1, min(_LENGTHS[-1], context_length - _NUM_TOKENS - _NUM_WRONG - 1))
    prompts = [tuple(rng.integers(0, vocabulary_size, min(length, longest)).tolist()) for length in _LENGTHS]
    decoded = [_decode(core, f"decoded {i}", prompt) for i, prompt in enumerate(prompts)]
    verified = _verify(core, prompts, [tokens for tokens, _ in decoded], rng, vocabulary_size)
    errors = [
        abs(a - b) for (_, one), other in zip(decoded, verified, strict=True) for a, b in zip(one, other, strict=False)
    ]
    num_wanted = len(prompts) * (_NUM_TOKENS if dtype == "float32" else _NUM_TOKENS // 2)
    tolerance = TOLERANCES.get(dtype, _LOOSEST)
    if len(errors) < num_wanted or not float(np.mean(errors)) <= tolerance:
        raise UnsupportedModel(
            f"this model is not supported on vLLM: of {len(prompts) * _NUM_TOKENS} decoded tokens {len(errors)} are "
            f"accepted as drafts, and their log-probabilities differ by {np.mean(errors or [np.inf]):.2g} on average "
            f"(at most {tolerance:g} in {dtype} is rounding)"
        )


def _decode(core: Core, name: str, prompt: tuple[TokenId, ...]) -> tuple[list[TokenId], list[float]]:
    """The first tokens, one step each, and their log-probabilities."""
    tokens, logprobs, num_prefill = [], [], len(prompt) - 1 - core.open(name, _OWNER, _request(prompt))
    for _ in range(_NUM_TOKENS):
        decision = core.step([StepMember(name, num_prefill, ())])[0]
        assert decision is not None
        tokens.append(decision.next_token)
        logprobs.append(decision.logprobs[0].logprob)
        num_prefill = 0
    core.close(name)
    return tokens, logprobs


def _verify(
    core: Core,
    prompts: list[tuple[TokenId, ...]],
    drafts: list[list[TokenId]],
    rng: np.random.Generator,
    vocabulary_size: int,
) -> list[list[float]]:
    """Log-probabilities of the tokens of `drafts` that are accepted: all in one batch, after a round with wrong ends."""
    names = [f"verified {i}" for i in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        num_cached = core.open(name, _OWNER, _request(prompt))
        if num_prefill := len(prompt) - 1 - num_cached:
            core.step([StepMember(name, num_prefill)])
    found: list[list[float]] = [[] for _ in names]
    wrong = rng.integers(0, vocabulary_size, _NUM_WRONG).tolist()
    for end, tail in ((1, wrong), (_NUM_TOKENS, [])):
        proposed = [[*draft[len(have) : end], *tail] for draft, have in zip(drafts, found, strict=True)]
        members = [
            StepMember(name, 0, tuple(map(DraftedToken, tokens))) for name, tokens in zip(names, proposed, strict=True)
        ]
        for have, draft, tokens, decision in zip(found, drafts, proposed, core.step(members), strict=True):
            assert decision is not None
            committed = [*tokens[: decision.num_accepted], decision.next_token]
            rest = draft[len(have) :]
            num_same = common_prefix(committed, rest, len(rest))
            have.extend(entry.logprob for entry in decision.logprobs[:num_same])
    for name in names:
        core.close(name)
    return found


def _request(prompt: tuple[TokenId, ...]) -> GenerationRequest:
    return GenerationRequest(prompt, len(prompt), SamplingParams(num_top_logprobs=0), StopRules(1 << 20))
