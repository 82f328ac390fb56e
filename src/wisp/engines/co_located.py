"""A target with a drafter beside it: the engine drafts for rounds in which devices do not.

All sessions of a step that are to be drafted for are drafted together, token by token, before the target's forward
verifies the drafts; a step's time is that of both models. The text is the target's own under both acceptance rules.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from wisp.engines.base import DraftEngine, ModelCard, StepMember, StepOutcome, TargetEngine
from wisp.errors import EngineError, VocabularyMismatch
from wisp.logs import logger
from wisp.policy.batch_time import BatchTimeModel
from wisp.types import DraftedToken, GenerationRequest, SamplingParams, SessionId, StopRules, TokenId

log = logger(__name__)

_MANY = 8
_STEPS = 5
_LONG = 128
_READINGS = 3


@dataclass(slots=True)
class _Lag:
    """What the drafter knows of a session's history."""

    request: GenerationRequest
    num_known: int | None = None
    """Its first tokens; None: the drafter has not opened it."""


@dataclass(slots=True)
class CoLocatedTarget:
    """Any target engine and any drafter; see TargetEngine. Raises VocabularyMismatch where they do not match."""

    target: TargetEngine
    drafter: DraftEngine
    _sessions: dict[SessionId, _Lag] = field(default_factory=dict, init=False)
    _most: int | None = field(default=None, init=False)
    """Sessions that are drafted for in one step, the first of a batch: the drafter's cache held no more; None: any."""

    def __post_init__(self) -> None:
        theirs, ours = self.drafter.vocabulary, self.target.card.vocabulary
        if theirs is not None and theirs != ours:
            raise VocabularyMismatch(
                f"the drafter {self.drafter.model_id} does not share the vocabulary of the target "
                f"{self.target.card.model_id}: draft with a model of the same tokenizer"
            )

    @property
    def card(self) -> ModelCard:
        return self.target.card

    @property
    def kv_capacity_tokens(self) -> int:
        return self.target.kv_capacity_tokens

    @property
    def kv_page_tokens(self) -> int:
        return self.target.kv_page_tokens

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        num_cached = self.target.open(session_id, owner, request)
        self._forget(session_id)
        self._sessions[session_id] = _Lag(request)
        return num_cached

    def history(self, session_id: SessionId) -> Sequence[TokenId]:
        return self.target.history(session_id)

    def num_cached_tokens(self, session_id: SessionId) -> int:
        return self.target.num_cached_tokens(session_id)

    def step(self, members: Sequence[StepMember]) -> list[StepOutcome]:
        drafts = self._draft([member for member in members if member.num_to_draft])
        verifying = [
            replace(member, draft=tuple(drafts[member.session_id]), num_to_draft=0) if member.num_to_draft else member
            for member in members
        ]
        outcomes = self.target.step(verifying)
        return [
            self._own(member.session_id, drafts[member.session_id], outcome) if member.num_to_draft else outcome
            for member, outcome in zip(members, outcomes, strict=True)
        ]

    def evict(self, session_id: SessionId) -> None:
        self.target.evict(session_id)

    def close(self, session_id: SessionId) -> None:
        self.target.close(session_id)
        self._forget(session_id)

    def shutdown(self) -> None:
        self._sessions.clear()
        self.drafter.shutdown()
        self.target.shutdown()

    def measured_draft_time(self) -> BatchTimeModel:
        """Seconds of the drafter's steps, by sessions and by tokens that they read first: measured now, on short histories."""
        one, many = (_step_time(self.drafter, size) for size in (1, _MANY))
        per_request = max(many - one, 0.0) / (_MANY - 1)
        length = min(_LONG, self.drafter.context_length // 2)
        per_token = max(_reading_time(self.drafter, length) - one, 0.0) / length
        return BatchTimeModel(fixed_s=max(one - per_request, 0.0), per_token_s=per_token, per_request_s=per_request)

    def _draft(self, members: Sequence[StepMember]) -> dict[SessionId, list[DraftedToken]]:
        """Up to `num_to_draft` tokens of each; fewer where the drafter has nothing to propose."""
        drafts: dict[SessionId, list[DraftedToken]] = {member.session_id: [] for member in members}
        drafting = [member for member in members[: self._most] if self._catch_up(member.session_id)]
        while drafting:
            try:
                proposed = self.drafter.draft([member.session_id for member in drafting])
            except EngineError as error:
                self._most = len(drafting) // 2
                log.warning(
                    "drafts for fewer sessions at a time: the drafter failed", most=self._most, reason=str(error)
                )
                return drafts
            going_on = []
            for member, token in zip(drafting, proposed, strict=True):
                if token is not None:
                    drafts[member.session_id].append(token)
                    if len(drafts[member.session_id]) < member.num_to_draft:
                        going_on.append(member)
            drafting = going_on
        return drafts

    def _catch_up(self, session_id: SessionId) -> bool:
        """Tell the drafter what was committed without it; False where the history has outgrown it."""
        history, session = self.target.history(session_id), self._sessions[session_id]
        if len(history) >= self.drafter.context_length:
            return False
        if session.num_known is None:
            self.drafter.open(session_id, replace(session.request, tokens=tuple(history)))
        elif session.num_known < len(history):
            self.drafter.commit(session_id, 0, tuple(history[session.num_known :]))
        session.num_known = len(history)
        return True

    def _own(self, session_id: SessionId, draft: Sequence[DraftedToken], outcome: StepOutcome) -> StepOutcome:
        """The outcome of a draft that no device knows of: what was accepted is spelt out."""
        accepted = tuple(drafted.token for drafted in draft[: outcome.num_accepted])
        session = self._sessions[session_id]
        if draft:
            rest = () if outcome.next_token is None else (outcome.next_token,)
            self.drafter.commit(session_id, outcome.num_accepted, rest)
            session.num_known = len(self.target.history(session_id))
        return replace(outcome, num_verified=0, num_accepted=0, own_tokens=accepted, num_own_drafted=len(draft))

    def _forget(self, session_id: SessionId) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None and session.num_known is not None:
            self.drafter.close(session_id)


def _step_time(drafter: DraftEngine, num_sessions: int) -> float:
    """Seconds for one more token of each session: the best of a few steps."""
    names = [f"measuring {i}" for i in range(num_sessions)]
    for name in names:
        drafter.open(name, _history(8))
    drafter.draft(names)
    times = [_timed_draft(drafter, names) for _ in range(_STEPS)]
    for name in names:
        drafter.close(name)
    return min(times)


def _reading_time(drafter: DraftEngine, length: int) -> float:
    """Seconds for the first token on a history of `length` tokens: the best of a few, none of which begins as another."""
    times = []
    for first in range(_READINGS):
        drafter.open("measuring", _history(length, first))
        times.append(_timed_draft(drafter, ["measuring"]))
        drafter.close("measuring")
    return min(times)


def _history(length: int, token: TokenId = 0) -> GenerationRequest:
    return GenerationRequest((token,) * length, length, SamplingParams(), StopRules(2 * _STEPS))


def _timed_draft(drafter: DraftEngine, names: Sequence[SessionId]) -> float:
    started = time.perf_counter()
    drafter.draft(names)
    return time.perf_counter() - started
