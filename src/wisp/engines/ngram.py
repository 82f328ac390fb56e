"""DraftEngine without a model: prompt lookup, which proposes what followed the same words before.

The longest suffix of history and draft (4 to 1 tokens) that occurred earlier proposes the token that followed its most
recent occurrence (Saxena 2023, "Prompt Lookup Decoding").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from wisp.errors import ConfigError, EngineError
from wisp.types import DraftedToken, GenerationRequest, SessionId, TokenId

_UNLIMITED = 1 << 31


class NgramDrafter:
    """Proposes repetitions; see DraftEngine. Its tokens carry no statistics, since no model stands behind them."""

    model_id = "ngram"
    vocabulary: str | None = None
    vocabulary_size: int | None = None
    weights: str | None = None
    context_length = _UNLIMITED

    def __init__(self, max_ngram: int = 4) -> None:
        if max_ngram < 1:
            raise ConfigError(f"max_ngram must be at least 1, not {max_ngram}")
        self._max_ngram = max_ngram
        self._sessions: dict[SessionId, _Index] = {}

    def open(self, session_id: SessionId, request: GenerationRequest) -> None:
        index = self._sessions[session_id] = _Index(self._max_ngram)
        index.extend(request.tokens)
        index.settle()

    def draft(self, session_ids: Sequence[SessionId]) -> list[DraftedToken | None]:
        return [self._session(session_id).draft() for session_id in session_ids]

    def commit(self, session_id: SessionId, num_accepted: int, tokens: Sequence[TokenId]) -> None:
        index = self._session(session_id)
        index.roll_back(num_accepted)
        index.extend(tokens)
        index.settle()

    def close(self, session_id: SessionId) -> None:
        del self._sessions[session_id]

    def shutdown(self) -> None:
        self._sessions.clear()

    def _session(self, session_id: SessionId) -> _Index:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise EngineError(f"no session {session_id!r} is open") from None


@dataclass(slots=True, eq=False)
class _Index:
    """A token sequence and, for each n-gram in it, where the token is that last followed it."""

    max_ngram: int
    tokens: list[TokenId] = field(default_factory=list)
    num_settled: int = 0
    """The tokens after these are drafted."""
    following: dict[tuple[TokenId, ...], int] = field(default_factory=dict)
    replaced: list[list[tuple[tuple[TokenId, ...], int | None]]] = field(default_factory=list)
    """Per token that is not settled: the entries it changed, as they were before."""

    def extend(self, tokens: Sequence[TokenId]) -> None:
        """Append `tokens`: each follows the n-grams that end before it."""
        for token in tokens:
            position = len(self.tokens)
            grams = [tuple(self.tokens[position - n :]) for n in range(1, min(self.max_ngram, position) + 1)]
            self.replaced.append([(gram, self.following.get(gram)) for gram in grams])
            self.following.update(dict.fromkeys(grams, position))
            self.tokens.append(token)

    def settle(self) -> None:
        """Make all tokens committed ones."""
        self.num_settled = len(self.tokens)
        self.replaced.clear()

    def draft(self) -> DraftedToken | None:
        """Propose and append a token; None where even the last token is new."""
        for n in range(min(self.max_ngram, len(self.tokens)), 0, -1):
            position = self.following.get(tuple(self.tokens[-n:]))
            if position is not None:
                token = self.tokens[position]
                self.extend([token])
                return DraftedToken(token)
        return None

    def roll_back(self, num_kept: int) -> None:
        """Drop all drafted tokens but the first `num_kept`."""
        if not 0 <= num_kept <= len(self.replaced):
            raise EngineError(f"{num_kept} of {len(self.replaced)} drafted tokens cannot have been accepted")
        while len(self.replaced) > num_kept:
            self.tokens.pop()
            for gram, position in self.replaced.pop():
                if position is None:
                    del self.following[gram]
                else:
                    self.following[gram] = position
