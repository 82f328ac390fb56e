"""TargetEngine on vLLM: what WISP keeps of its sessions. vLLM itself runs in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from wisp.engines import card as cards
from wisp.engines import vocabulary
from wisp.engines.base import ModelCard, StepMember, StepOutcome
from wisp.engines.fingerprint import checkpoint_fingerprint
from wisp.engines.generation import Generation, check_members, check_request
from wisp.engines.sampling import Decision
from wisp.engines.vllm import versions
from wisp.engines.vllm.process import EngineFacts, EngineProcess
from wisp.engines.vllm.settings import VllmSettings
from wisp.errors import EngineError, ModelError
from wisp.types import DraftedToken, GenerationRequest, SessionId, TokenId


class RunsSteps(Protocol):
    """EngineProcess, as far as VllmTarget is concerned."""

    epoch: int
    facts: EngineFacts

    @property
    def pid(self) -> int: ...

    def ensure_running(self) -> None: ...

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int: ...

    def step(self, members: Sequence[StepMember]) -> list[Decision | None]: ...

    def evict(self, session_id: SessionId) -> None: ...

    def close(self, session_id: SessionId) -> None: ...

    def shutdown(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Session(Generation):
    """One session: its history, how much of it is cached, and in which of the processes."""

    owner: str
    num_cached: int = 0
    epoch: int = 0


class VllmTarget:
    """Verifies drafts with vLLM; see TargetEngine.

    A step that would exceed the cache, or the largest step that vLLM was set up for, raises EngineError before it
    computes anything. When vLLM's process dies, the step raises EngineError and everything cached is gone; the next
    call starts the process again and sessions are computed from their histories.
    """

    def __init__(self, process: RunsSteps, card: ModelCard, settings: VllmSettings) -> None:
        self.card = card
        self._process = process
        self._settings = settings
        self._sessions: dict[SessionId, _Session] = {}

    @classmethod
    def load(cls, settings: VllmSettings, name: str | None = None) -> VllmTarget:
        """Start vLLM with a model by path or hub name. Raises ConfigError and ModelError."""
        versions.check(versions.installed())
        files = _Files.of(settings.model)
        process = EngineProcess(settings, vocabulary.vocabulary_size(files.tokenizer_json))
        return cls(process, files.card(name, process.facts), settings)

    @property
    def pid(self) -> int:
        """Of vLLM's process."""
        return self._process.pid

    @property
    def kv_capacity_tokens(self) -> int:
        return self._process.facts.capacity_tokens

    @property
    def kv_page_tokens(self) -> int:
        return self._process.facts.page_tokens

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        limit = min(self.card.context_length, self.kv_capacity_tokens)
        check_request(request, self.card.vocabulary_size, limit)
        self._forget(session_id)
        session = self._sessions[session_id] = _Session(request, list(request.tokens), owner)
        self._open(session_id, session)
        return session.num_cached

    def history(self, session_id: SessionId) -> Sequence[TokenId]:
        return self._session(session_id).history

    def num_cached_tokens(self, session_id: SessionId) -> int:
        session = self._session(session_id)
        return session.num_cached if session.epoch == self._process.epoch else 0

    def step(self, members: Sequence[StepMember]) -> list[StepOutcome]:
        check_members(members)
        sessions = [self._session(member.session_id) for member in members]
        useful = [self._useful(member, session) for member, session in zip(members, sessions, strict=True)]
        self._check_size(useful)
        for member, session in zip(useful, sessions, strict=True):
            if session.epoch != self._process.epoch:
                self._open(member.session_id, session)
        decisions = self._process.step(useful)
        return [_commit(*parts) for parts in zip(useful, sessions, decisions, strict=True)]

    def evict(self, session_id: SessionId) -> None:
        session = self._session(session_id)
        session.num_cached = 0
        if session.epoch == self._process.epoch:
            self._process.evict(session_id)

    def close(self, session_id: SessionId) -> None:
        self._session(session_id)
        self._forget(session_id)

    def shutdown(self) -> None:
        self._sessions.clear()
        self._process.shutdown()

    def _session(self, session_id: SessionId) -> _Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise EngineError(f"no session {session_id!r} is open") from None

    def _forget(self, session_id: SessionId) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None and session.epoch == self._process.epoch:
            self._process.close(session_id)

    def _open(self, session_id: SessionId, session: _Session) -> None:
        """Open a session in the process, whichever runs by then."""
        self._process.ensure_running()
        request = replace(session.request, tokens=tuple(session.history))
        session.num_cached = self._process.open(session_id, session.owner, request)
        session.epoch = self._process.epoch

    def _useful(self, member: StepMember, session: _Session) -> StepMember:
        """The member, checked, with the part of its draft that is computed."""
        session.prefill_end(member, self.num_cached_tokens(member.session_id))
        if not member.draft:
            return member
        draft = session.useful(member.draft, self.card.vocabulary_size)[: self._settings.max_draft_tokens]
        trimmed = member.draft[len(draft)] if len(draft) < len(member.draft) else member.trimmed
        bare = tuple(DraftedToken(drafted.token, None, drafted.distribution) for drafted in draft)
        return replace(member, draft=bare, trimmed=trimmed)

    def _check_size(self, members: Sequence[StepMember]) -> None:
        num_new = sum(m.num_prefill_tokens + (0 if m.draft is None else 1 + len(m.draft)) for m in members)
        most, most_new = self._settings.max_requests, self._settings.max_new_tokens
        if len(members) > most or num_new > most_new:
            raise EngineError(
                f"a step of {len(members)} sessions and {num_new} positions exceeds the {most} and {most_new} that vLLM "
                "was set up for"
            )


def _commit(member: StepMember, session: _Session, decision: Decision | None) -> StepOutcome:
    if member.draft is None or decision is None:
        session.num_cached += member.num_prefill_tokens
        return StepOutcome()
    outcome = session.commit(decision, member.draft)
    session.num_cached = len(session.history) - 1
    return outcome


@dataclass(frozen=True, slots=True)
class _Files:
    """What is read of a model beside its weights."""

    model: str
    tokenizer: Any
    tokenizer_json: bytes
    settings: dict[str, Any]

    @classmethod
    def of(cls, model: str) -> _Files:
        """Raises ModelError."""
        from transformers import AutoTokenizer, GenerationConfig

        from wisp.engines.packed.loading import check_source

        check_source(model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises nothing more special
            raise ModelError(f"the tokenizer of {model!r} (tokenizer.json) cannot be loaded: {error}") from error
        try:
            settings = GenerationConfig.from_pretrained(model).to_diff_dict()
        except OSError:
            settings = {}  # not every checkpoint has one
        return cls(model, tokenizer, cards.tokenizer_json(tokenizer, model), settings)

    def card(self, name: str | None, facts: EngineFacts) -> ModelCard:
        """What devices have to know."""
        from wisp.engines.packed.loading import own_name

        return cards.model_card(
            name or own_name(self.model),
            self.tokenizer,
            self.settings,
            tokenizer_json=self.tokenizer_json,
            vocabulary_size=facts.vocabulary_size,
            context_length=facts.context_length,
            dtype=facts.dtype,
            device=facts.device,
            weights=checkpoint_fingerprint(self.model),
        )
