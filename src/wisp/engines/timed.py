"""TargetEngine without a model: verdicts from recorded outputs, durations from a batch-time model. Emulated.

At output position i of a prompt the target says trace[prompt][i]: a drafted token is accepted while it equals that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from wisp.engines.base import ModelCard, StepMember, StepOutcome
from wisp.errors import EngineError, FormatError, InvalidRequest
from wisp.formats.trace import TraceRecord
from wisp.policy.batch_time import BatchShape, BatchTime
from wisp.types import FinishReason, GenerationRequest, SessionId, TokenId


@dataclass(frozen=True, slots=True)
class RecordedOutputs:
    """What the target said to each prompt."""

    outputs: Mapping[tuple[TokenId, ...], tuple[TokenId, ...]]

    @classmethod
    def of(cls, records: Iterable[TraceRecord]) -> RecordedOutputs:
        """Those of a trace. Raises FormatError."""
        return cls({prompt: one.tokens[one.num_prompt_tokens :] for prompt, one in by_prompt(records).items()})

    def output(self, request: GenerationRequest) -> tuple[TokenId, ...]:
        """The recorded output that a request's history is a beginning of. Raises InvalidRequest."""
        prompt, so_far = request.tokens[: request.num_prompt_tokens], request.tokens[request.num_prompt_tokens :]
        recorded = self.outputs.get(prompt)
        if recorded is None:
            raise InvalidRequest(f"the trace holds no prompt like this one of {len(prompt)} tokens", "prompt")
        if recorded[: len(so_far)] != so_far:
            raise InvalidRequest("the history is not the beginning of the recorded output", "prompt")
        if len(recorded) == len(so_far):
            raise InvalidRequest(f"the recorded output ends after {len(recorded)} tokens", "prompt")
        return recorded


def by_prompt(records: Iterable[TraceRecord]) -> dict[tuple[TokenId, ...], TraceRecord]:
    """A trace's records by their prompts. Raises FormatError where one prompt has two different outputs."""
    found: dict[tuple[TokenId, ...], TraceRecord] = {}
    for record in records:
        other = found.setdefault(record.tokens[: record.num_prompt_tokens], record)
        if other.tokens != record.tokens:
            raise FormatError(
                f"{other.name} and {record.name} are the same prompt with different outputs: replay tells sessions apart by "
                "their prompts, so record each prompt once"
            )
    return found


@dataclass(slots=True)
class _Session:
    owner: str
    request: GenerationRequest
    recorded: tuple[TokenId, ...]
    tokens: list[TokenId]
    num_cached: int

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.request.num_prompt_tokens


@dataclass(slots=True)
class TimedTarget:
    """Emulates a target on some hardware; see TargetEngine.

    Caches are reused as the real targets reuse them: a session begins with the longest prefix that another one of its
    owner has, open or closed; closed ones are kept until the room is needed, and lost longest unused first.
    """

    card: ModelCard
    recorded: RecordedOutputs
    batch_time: BatchTime
    sleep: Callable[[float], None]
    kv_capacity_tokens: int = 1 << 31
    kv_page_tokens: int = 1
    _sessions: dict[SessionId, _Session] = field(default_factory=dict, init=False)
    _closed: list[_Session] = field(default_factory=list, init=False)
    """Longest unused first."""

    def __post_init__(self) -> None:
        self.card = replace(self.card, emulated=True)

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        if request.sampling.num_top_logprobs is not None:
            raise InvalidRequest("an emulated target has no logprobs", "logprobs")
        recorded = self.recorded.output(request)
        if session_id in self._sessions:
            self.close(session_id)
        num_cached = self._take_cached(owner, request.tokens)
        self._sessions[session_id] = _Session(owner, request, recorded, list(request.tokens), num_cached)
        return num_cached

    def history(self, session_id: SessionId) -> Sequence[TokenId]:
        return self._sessions[session_id].tokens

    def num_cached_tokens(self, session_id: SessionId) -> int:
        return self._sessions[session_id].num_cached

    def step(self, members: Sequence[StepMember]) -> list[StepOutcome]:
        sessions = [self._sessions[member.session_id] for member in members]
        sizes = [
            (_num_new_tokens(member), session.num_cached) for session, member in zip(sessions, members, strict=True)
        ]
        self._make_room(sum(num_new for num_new, _ in sizes))
        outcomes = [_advance(session, member) for session, member in zip(sessions, members, strict=True)]
        self.sleep(self.batch_time(BatchShape.of_members(sizes)))
        return outcomes

    def evict(self, session_id: SessionId) -> None:
        self._sessions[session_id].num_cached = 0

    def close(self, session_id: SessionId) -> None:
        session = self._sessions.pop(session_id)
        if session.num_cached:
            self._closed.append(session)

    def shutdown(self) -> None:
        self._sessions.clear()
        self._closed.clear()

    def _take_cached(self, owner: str, tokens: Sequence[TokenId]) -> int:
        """Tokens of a new history, but for its last, that are cached; a closed session of no other use is taken over."""
        others = [one for one in (*self._closed, *self._sessions.values()) if one.owner == owner]
        shared = [_num_shared(one, tokens) for one in others]
        num_cached = max(shared, default=0)
        if num_cached:
            source = others[shared.index(num_cached)]
            if any(source is one for one in self._closed) and 2 * num_cached >= source.num_cached:
                self._closed = [one for one in self._closed if one is not source]
        return num_cached

    def _make_room(self, num_new: int) -> None:
        """Lose closed sessions until what is open can grow."""
        room = self.kv_capacity_tokens - num_new - sum(session.num_cached for session in self._sessions.values())
        room -= sum(session.num_cached for session in self._closed)
        while room < 0 and self._closed:
            room += self._closed.pop(0).num_cached


def _advance(session: _Session, member: StepMember) -> StepOutcome:
    missing = len(session.tokens) - 1 - session.num_cached
    complete = member.draft is None or member.num_prefill_tokens == missing
    if not complete or member.num_prefill_tokens > missing:
        raise EngineError(f"{member.num_prefill_tokens} prefill tokens where {missing} are missing")
    session.num_cached += member.num_prefill_tokens
    if member.draft is None:
        return StepOutcome()
    outcome = _verify(session, [drafted.token for drafted in member.draft])
    session.num_cached = len(session.tokens) - 1
    return outcome


def _verify(session: _Session, draft: Sequence[TokenId]) -> StepOutcome:
    """Commit recorded tokens while the draft holds the same, then one more."""
    for num_accepted in range(len(draft) + 1):
        token = session.recorded[session.num_output_tokens]
        session.tokens.append(token)
        reason = _finish_reason(session)
        if num_accepted == len(draft) or draft[num_accepted] != token:
            return StepOutcome(len(draft), num_accepted, token, reason)
        if reason is not None:
            return StepOutcome(len(draft), num_accepted + 1, None, reason)
    raise AssertionError("the last position always returns")


def _finish_reason(session: _Session) -> FinishReason | None:
    stop = session.request.stop
    if session.tokens[-1] in stop.stop_token_ids:
        return FinishReason.STOP
    over = session.num_output_tokens >= min(stop.max_tokens, len(session.recorded))
    return FinishReason.LENGTH if over else None


def _num_new_tokens(member: StepMember) -> int:
    return member.num_prefill_tokens + (0 if member.draft is None else 1 + len(member.draft))


def _num_shared(older: _Session, tokens: Sequence[TokenId]) -> int:
    """How much of `tokens`, but for the last, the older session's cache holds."""
    length = min(older.num_cached, len(tokens) - 1)
    if older.tokens[:length] == list(tokens[:length]):
        return length
    return next(i for i in range(length) if older.tokens[i] != tokens[i])
