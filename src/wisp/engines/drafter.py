"""DraftEngine for any supported Hugging Face causal LM: the packed engine of the target, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wisp.engines import vocabulary
from wisp.engines.fingerprint import weights_fingerprint
from wisp.engines.packed.batch import Segment
from wisp.engines.packed.loading import DEFAULTS, LoadedModel, LoadOptions, load
from wisp.engines.packed.residency import Residency, Resident
from wisp.engines.processing import SamplingItem
from wisp.engines.sampling import draft_tokens
from wisp.errors import EngineError
from wisp.types import DraftedToken, GenerationRequest, SessionId, TokenId

_PREFILL_TOKENS = 512
"""Computed at a time when a session's cache lags behind its history."""


@dataclass(slots=True, eq=False)
class _Session:
    """One session: committed tokens followed by drafted ones in `tokens`, and what of them is cached."""

    request: GenerationRequest
    tokens: list[TokenId]
    resident: Resident
    draft: list[DraftedToken] = field(default_factory=list)

    @property
    def num_committed(self) -> int:
        return len(self.tokens) - len(self.draft)

    @property
    def uncached(self) -> list[TokenId]:
        return self.tokens[self.resident.num_cached :]

    @property
    def sampling_item(self) -> SamplingItem:
        history = self.tokens[: self.num_committed]
        return SamplingItem(history, self.request.num_prompt_tokens, self.request.sampling, self.draft)


class TransformersDrafter:
    """Drafts with a transformers model; see DraftEngine.

    All sessions are taken to be of one user: prefixes are shared among them. The caches of idle sessions are dropped
    when those that draft need the room.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.model_id = loaded.model_id
        self.vocabulary: str | None = vocabulary.fingerprint(loaded.tokenizer_json)
        self.context_length = min(loaded.context_length, loaded.packed.pool.capacity_tokens)
        self.vocabulary_size = loaded.vocabulary_size
        self.weights: str | None = weights_fingerprint(loaded.packed.model)
        self._packed = loaded.packed
        self._residency = Residency(loaded.packed.pool)
        self._sessions: dict[SessionId, _Session] = {}

    @classmethod
    def load(cls, model_id: str, options: LoadOptions = DEFAULTS) -> TransformersDrafter:
        """Load and check a model by path or hub name; raises ModelError."""
        return cls(load(model_id, options))

    def open(self, session_id: SessionId, request: GenerationRequest) -> None:
        tokens = list(request.tokens)
        self._sessions[session_id] = _Session(request, tokens, self._residency.open(session_id, "", tokens))

    @torch.inference_mode()
    def draft(self, session_ids: Sequence[SessionId]) -> list[DraftedToken | None]:
        sessions = [self._session(session_id) for session_id in session_ids]
        drafting = [session for session in sessions if len(session.tokens) <= self.context_length]
        if not drafting:
            return [None] * len(sessions)
        logits = self._next_logits(drafting)
        drafted = draft_tokens(logits, [session.sampling_item for session in drafting], self.vocabulary_size)
        for session, token in zip(drafting, drafted, strict=True):
            session.draft.append(token)
            session.tokens.append(token.token)
        found = dict(zip(map(id, drafting), drafted, strict=True))
        return [found.get(id(session)) for session in sessions]

    def commit(self, session_id: SessionId, num_accepted: int, tokens: Sequence[TokenId]) -> None:
        session = self._session(session_id)
        if not 0 <= num_accepted <= len(session.draft):
            raise EngineError(f"{num_accepted} of {len(session.draft)} drafted tokens cannot have been accepted")
        kept = session.num_committed + num_accepted
        del session.tokens[kept:]
        session.draft.clear()
        session.tokens.extend(tokens)
        cached = min(session.resident.num_cached, kept, len(session.tokens) - 1)
        self._packed.truncate(session.resident.sequence, cached)

    def close(self, session_id: SessionId) -> None:
        session = self._sessions.pop(session_id)
        self._packed.truncate(session.resident.sequence, min(session.resident.num_cached, session.num_committed))
        self._residency.close(session_id)

    def shutdown(self) -> None:
        self._sessions.clear()
        self._residency.shutdown()

    def _session(self, session_id: SessionId) -> _Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise EngineError(f"no session {session_id!r} is open") from None

    def _next_logits(self, sessions: Sequence[_Session]) -> Tensor:
        """The logits that follow each session's tokens [sessions, embedding size], lagging caches caught up first."""
        while lagging := [session for session in sessions if len(session.uncached) > _PREFILL_TOKENS]:
            for session in lagging:
                self._forward([Segment(session.resident.sequence, session.uncached[:_PREFILL_TOKENS], 0)], sessions)
        return self._forward([Segment(s.resident.sequence, s.uncached, 1) for s in sessions], sessions)

    def _forward(self, segments: list[Segment], drafting: Sequence[_Session]) -> Tensor:
        growth = [(segment.sequence, segment.sequence.length + len(segment.tokens)) for segment in segments]
        busy = {id(session) for session in drafting}
        idle = [session.resident for session in self._sessions.values() if id(session) not in busy]
        self._residency.make_room(growth, spare=idle)
        return self._packed.forward(segments)
