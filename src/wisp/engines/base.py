"""DraftEngine and TargetEngine, the two interfaces an engine may implement.

Engines are synchronous and not thread-safe: their owner calls them from one thread. Sessions are known by a key that
is unique within the engine. An engine keeps each session's token history and a KV cache of some prefix of it; rollback
is the engine's own business and shows only as a shorter history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wisp.types import (
    AcceptanceRule,
    DraftedToken,
    FinishReason,
    GenerationRequest,
    SessionId,
    TokenId,
    TokenLogprobs,
)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling defaults that a model's own generation config names; None where it is silent."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the other end has to know of a target model."""

    model_id: str
    tokenizer_json: bytes
    vocabulary: str
    """Fingerprint of the vocabulary (engines/vocabulary.py)."""
    vocabulary_size: int
    """One more than the highest token id of the tokenizer, padding rows of the embedding not counted."""
    context_length: int
    eos_token_ids: tuple[TokenId, ...]
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    generation_defaults: GenerationDefaults = GenerationDefaults()
    acceptance_rules: tuple[AcceptanceRule, ...] = tuple(AcceptanceRule)
    dtype: str = ""
    """The number format that is computed in."""
    device: str = ""
    """What computes: cpu, or the name of the GPU. Times hold for one model, dtype and device."""
    weights: str = ""
    """Fingerprint of the weights (engines/fingerprint.py); empty: unknown."""
    emulated: bool = False
    """Verdicts or durations are not those of a real model on this machine; shown wherever results are."""


@dataclass(frozen=True, slots=True)
class StepMember:
    """What a target engine does for one session in one step.

    First `num_prefill_tokens` uncached history tokens are computed. If `draft` is not None, they are all that is left
    but the last one; then the last history token and the draft are computed and the draft is verified.
    """

    session_id: SessionId
    num_prefill_tokens: int = 0
    draft: tuple[DraftedToken, ...] | None = None
    trimmed: DraftedToken | None = None
    """The first drafted token that is not verified, where the scheduler cut the draft: rejection sampling stays lossless
    only if the token at the cut is still proposed (docs/sampling.md)."""
    num_to_draft: int = 0
    """Tokens that the engine's own drafter proposes in place of an empty `draft` (engines/co_located.py)."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step gave one of its members; all empty for a member that was only prefilled."""

    num_verified: int = 0
    num_accepted: int = 0
    next_token: TokenId | None = None
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per committed token, when asked for."""
    own_tokens: tuple[TokenId, ...] = ()
    """Committed before `next_token`: what the engine drafted itself and accepted."""
    num_own_drafted: int = 0
    """Tokens that it drafted itself: at most as many as it was asked for."""

    @property
    def num_committed(self) -> int:
        return self.num_accepted + len(self.own_tokens) + (self.next_token is not None)


class TargetEngine(Protocol):
    """Verifies drafts with the target model."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose keys and values fit into the cache, all sessions together."""
        ...

    @property
    def kv_page_tokens(self) -> int:
        """Granularity in which a session occupies the cache."""
        ...

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        """Start a session with a history; returns how many of its tokens are cached already.

        Cached prefixes are found among sessions of the same `owner` (credential) only. A session that is open under
        this id is replaced, its cache re-used. Raises InvalidRequest when the request cannot be served.
        """
        ...

    def history(self, session_id: SessionId) -> Sequence[TokenId]:
        """Prompt and committed tokens."""
        ...

    def num_cached_tokens(self, session_id: SessionId) -> int:
        """How many history tokens are in the cache; at most all but the last."""
        ...

    def step(self, members: Sequence[StepMember]) -> list[StepOutcome]:
        """Compute one batch; outcomes in the order of `members`. Committed tokens are added to each history."""
        ...

    def evict(self, session_id: SessionId) -> None:
        """Drop the session's cache; the session and its history stay."""
        ...

    def close(self, session_id: SessionId) -> None:
        """End a session; its cache may serve later sessions of its owner until the room is needed."""
        ...

    def shutdown(self) -> None:
        """Release everything."""
        ...


class DraftEngine(Protocol):
    """Proposes tokens with a small model, or without one."""

    @property
    def model_id(self) -> str: ...

    @property
    def vocabulary(self) -> str | None:
        """Fingerprint of the drafter's vocabulary; None where it has none of its own."""
        ...

    @property
    def vocabulary_size(self) -> int | None:
        """One more than the drafter's highest token id; None where it has no vocabulary of its own."""
        ...

    @property
    def weights(self) -> str | None:
        """Fingerprint of the drafter's weights; None where it has none."""
        ...

    @property
    def context_length(self) -> int:
        """Longest history that can be drafted on."""
        ...

    def open(self, session_id: SessionId, request: GenerationRequest) -> None:
        """Start a session, or replace it; a cached prefix of any earlier session is re-used."""
        ...

    def draft(self, session_ids: Sequence[SessionId]) -> list[DraftedToken | None]:
        """One more drafted token for each session, appended to its draft; None where there is nothing to propose."""
        ...

    def commit(self, session_id: SessionId, num_accepted: int, tokens: Sequence[TokenId]) -> None:
        """End a round: keep the first `num_accepted` drafted tokens, drop the others, then append `tokens`."""
        ...

    def close(self, session_id: SessionId) -> None:
        """End a session."""
        ...

    def shutdown(self) -> None:
        """Release everything."""
        ...
