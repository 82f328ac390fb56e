"""DraftEngine without a model: proposes what a trace recorded at each position. Needs the target that made the trace.

After j tokens of a recorded output, chain j of the trace is proposed, token by token, until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wisp.engines.timed import by_prompt
from wisp.errors import ConfigError, EngineError
from wisp.formats.trace import Chain, TraceHeader, TraceRecord
from wisp.types import DraftedToken, GenerationRequest, SessionId, TokenId

_UNLIMITED = 1 << 31


@dataclass(slots=True, eq=False)
class _Session:
    record: TraceRecord
    num_output: int
    """Tokens of the output that are committed."""
    num_drafted: int = 0

    @property
    def chain(self) -> Chain | None:
        return self.record.chains[self.num_output] if self.num_output < len(self.record.chains) else None


class ReplayDrafter:
    """Replays drafts; see DraftEngine. A history that is not the beginning of its recording is an EngineError."""

    context_length = _UNLIMITED
    vocabulary_size: int | None = None

    def __init__(self, header: TraceHeader, records: Iterable[TraceRecord]) -> None:
        """Raises ConfigError for a trace of rejection sampling, which lacks the drafts' distributions, and FormatError."""
        if header.rule == "rejection":
            raise ConfigError(
                "a trace of rejection sampling cannot be replayed: it holds no draft distributions; record one with the "
                "rule coupled, or a greedy one"
            )
        pair = header.pair
        self.model_id = pair.draft
        self.vocabulary: str | None = pair.vocabulary
        self.weights: str | None = pair.draft_weights
        self._records = by_prompt(records)
        self._sessions: dict[SessionId, _Session] = {}

    def open(self, session_id: SessionId, request: GenerationRequest) -> None:
        record = self._records.get(request.tokens[: request.num_prompt_tokens])
        if record is None:
            raise EngineError(f"the trace holds no prompt like this one of {request.num_prompt_tokens} tokens")
        session = _Session(record, 0)
        _advance(session, request.tokens[request.num_prompt_tokens :])
        self._sessions[session_id] = session

    def draft(self, session_ids: Sequence[SessionId]) -> list[DraftedToken | None]:
        return [_draft(self._session(session_id)) for session_id in session_ids]

    def commit(self, session_id: SessionId, num_accepted: int, tokens: Sequence[TokenId]) -> None:
        session = self._session(session_id)
        if not 0 <= num_accepted <= session.num_drafted:
            raise EngineError(f"{num_accepted} of {session.num_drafted} drafted tokens cannot have been accepted")
        accepted = () if session.chain is None else session.chain.tokens[:num_accepted]
        session.num_drafted = 0
        _advance(session, (*accepted, *tokens))

    def close(self, session_id: SessionId) -> None:
        del self._sessions[session_id]

    def shutdown(self) -> None:
        self._sessions.clear()

    def _session(self, session_id: SessionId) -> _Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise EngineError(f"no session {session_id!r} is open") from None


def _draft(session: _Session) -> DraftedToken | None:
    chain = session.chain
    if chain is None or session.num_drafted >= len(chain.tokens):
        return None
    index = session.num_drafted
    session.num_drafted += 1
    return DraftedToken(chain.tokens[index], chain.stats[index])


def _advance(session: _Session, tokens: Sequence[TokenId]) -> None:
    """Commit `tokens`, which the recording has to go on with."""
    record = session.record
    for token in tokens:
        position = record.num_prompt_tokens + session.num_output
        recorded = record.tokens[position] if position < len(record.tokens) else None
        if token != recorded:
            raise EngineError(
                f"output token {session.num_output} of {record.name} is {token}, but {recorded} was recorded: replay needs "
                "the target, the sampler and the seeds that made the trace"
            )
        session.num_output += 1
