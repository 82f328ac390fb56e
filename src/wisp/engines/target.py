"""TargetEngine for any supported Hugging Face causal LM on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wisp.engines import vocabulary
from wisp.engines.base import GenerationDefaults, ModelCard, StepMember, StepOutcome
from wisp.engines.packed.batch import Segment
from wisp.engines.packed.loading import DEFAULTS, LoadedModel, LoadOptions, load
from wisp.engines.packed.residency import Residency, Resident
from wisp.engines.processing import SamplingItem
from wisp.engines.sampling import Decision, cut, verify
from wisp.errors import EngineError, InvalidRequest
from wisp.types import DraftedToken, GenerationRequest, SessionId, TokenId


@dataclass(slots=True, eq=False)
class _Session:
    """One session: its history and what of it is cached."""

    request: GenerationRequest
    history: list[TokenId]
    resident: Resident

    @property
    def tokens_left(self) -> int:
        return self.request.num_prompt_tokens + self.request.stop.max_tokens - len(self.history)


@dataclass(frozen=True, slots=True)
class _Task:
    """One member of a step, with the tokens that it computes."""

    session: _Session
    tokens: list[TokenId]
    draft: tuple[DraftedToken, ...] | None

    @property
    def segment(self) -> Segment:
        num_logits = 0 if self.draft is None else 1 + len(self.draft)
        return Segment(self.session.resident.sequence, self.tokens, num_logits)


class TransformersTarget:
    """Verifies drafts with a transformers model; see TargetEngine.

    Open sessions may cache up to `kv_capacity_tokens` in units of `kv_page_tokens`; a step that would exceed this, with
    nothing left to free of the closed ones, raises EngineError before it computes anything.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.card = model_card(loaded)
        self._packed = loaded.packed
        self._pool = loaded.packed.pool
        self._residency = Residency(self._pool)
        self._sessions: dict[SessionId, _Session] = {}

    @classmethod
    def load(cls, model_id: str, options: LoadOptions = DEFAULTS) -> TransformersTarget:
        """Load and check a model by path or hub name; raises ModelError."""
        return cls(load(model_id, options))

    @property
    def kv_capacity_tokens(self) -> int:
        return self._pool.capacity_tokens

    @property
    def kv_page_tokens(self) -> int:
        """Granularity in which the cache is handed out, for SchedulerLimits."""
        return self._pool.page_tokens

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        self._check(request)
        history = list(request.tokens)
        resident = self._residency.open(session_id, owner, history)
        self._sessions[session_id] = _Session(request, history, resident)
        return resident.num_cached

    def history(self, session_id: SessionId) -> Sequence[TokenId]:
        return self._session(session_id).history

    def num_cached_tokens(self, session_id: SessionId) -> int:
        return self._session(session_id).resident.num_cached

    @torch.inference_mode()
    def step(self, members: Sequence[StepMember]) -> list[StepOutcome]:
        if not members:
            return []
        if len({member.session_id for member in members}) < len(members):
            raise EngineError("a session appears twice in one step")
        tasks = [self._task(member) for member in members]
        segments = [task.segment for task in tasks if task.tokens]
        growth = [(s.sequence, s.sequence.length + len(s.tokens)) for s in segments]
        self._residency.make_room(growth)
        try:
            logits = self._packed.forward(segments)
        except EngineError:
            for segment in segments:
                self._pool.truncate(segment.sequence, segment.sequence.length)
            raise
        verifying = [task for task in tasks if task.draft is not None]
        items = [_sampling_item(task) for task in verifying]
        decisions = dict(zip(map(id, verifying), verify(logits, items, self.card.vocabulary_size), strict=True))
        return [self._commit(task, decisions.get(id(task))) for task in tasks]

    def evict(self, session_id: SessionId) -> None:
        self._pool.truncate(self._session(session_id).resident.sequence, 0)

    def close(self, session_id: SessionId) -> None:
        del self._sessions[session_id]
        self._residency.close(session_id)

    def shutdown(self) -> None:
        self._sessions.clear()
        self._residency.shutdown()

    def _session(self, session_id: SessionId) -> _Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise EngineError(f"no session {session_id!r} is open") from None

    def _task(self, member: StepMember) -> _Task:
        """What a member computes: its prefill (copied from another session as far as one has it), last token, draft."""
        session = self._session(member.session_id)
        history, before = session.history, session.resident.num_cached
        end = before + member.num_prefill_tokens
        if end > len(history) - 1 or (member.draft is not None and end != len(history) - 1):
            raise EngineError(
                f"session {member.session_id!r} has {len(history)} tokens, {before} of them cached: it cannot compute "
                f"{member.num_prefill_tokens} before its last"
            )
        self._residency.share(session.resident, member.num_prefill_tokens)
        tokens = history[session.resident.num_cached : end]
        if member.draft is None:
            return _Task(session, tokens, None)
        draft = member.draft[: max(0, session.tokens_left - 1)]  # the last token allowed is the target's own
        return _Task(session, [*tokens, history[-1], *(drafted.token for drafted in draft)], draft)

    def _commit(self, task: _Task, decision: Decision | None) -> StepOutcome:
        """Add what was decided to the history and roll the cache back to all of it but the last token."""
        if decision is None or task.draft is None:
            return StepOutcome()
        session, stop = task.session, task.session.request.stop
        end = cut(decision, task.draft, stop.stop_token_ids, session.tokens_left)
        session.history.extend(drafted.token for drafted in task.draft[: end.num_accepted])
        if end.next_token is not None:
            session.history.append(end.next_token)
        self._pool.truncate(session.resident.sequence, len(session.history) - 1)
        return StepOutcome(len(task.draft), end.num_accepted, end.next_token, end.finish_reason, end.logprobs)

    def _check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest for what can never be served."""
        if not 0 < request.num_prompt_tokens <= len(request.tokens):
            raise InvalidRequest("the prompt is empty", "prompt")
        if (highest := max(request.tokens)) >= self.card.vocabulary_size or min(request.tokens) < 0:
            wrong = highest if highest >= self.card.vocabulary_size else min(request.tokens)
            raise InvalidRequest(
                f"the token id {wrong} is outside the vocabulary of {self.card.vocabulary_size} tokens", "prompt"
            )
        if request.num_output_tokens >= request.stop.max_tokens:
            raise InvalidRequest(
                f"max_tokens is {request.stop.max_tokens} and {request.num_output_tokens} tokens are there already",
                "max_tokens",
            )
        total = request.num_prompt_tokens + request.stop.max_tokens
        if total > (limit := min(self.card.context_length, self.kv_capacity_tokens)):
            raise InvalidRequest(
                f"{request.num_prompt_tokens} prompt tokens and max_tokens = {request.stop.max_tokens} exceed the "
                f"{limit} tokens that this server can hold for a session",
                "max_tokens",
            )


def _sampling_item(task: _Task) -> SamplingItem:
    request = task.session.request
    return SamplingItem(task.session.history, request.num_prompt_tokens, request.sampling, task.draft or ())


def model_card(loaded: LoadedModel) -> ModelCard:
    """What devices have to know of a loaded model."""
    tokenizer = loaded.tokenizer
    settings: dict[str, Any] = loaded.packed.model.generation_config.to_diff_dict()
    return ModelCard(
        model_id=loaded.model_id,
        tokenizer_json=loaded.tokenizer_json,
        vocabulary=vocabulary.fingerprint(loaded.tokenizer_json),
        vocabulary_size=loaded.vocabulary_size,
        context_length=loaded.context_length,
        eos_token_ids=_eos_token_ids(settings.get("eos_token_id"), tokenizer.eos_token_id),
        chat_template=_chat_template(tokenizer.chat_template),
        special_tokens={name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        generation_defaults=GenerationDefaults(
            **{name: settings.get(name) for name in GenerationDefaults.__dataclass_fields__}
        ),
    )


def _eos_token_ids(configured: int | list[int] | None, of_tokenizer: int | None) -> tuple[TokenId, ...]:
    """Those of the generation config, then the tokenizer's."""
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(int(token) for token in [*ids, of_tokenizer] if token is not None))


def _chat_template(template: str | dict[str, str] | None) -> str | None:
    """The default one where a tokenizer has several."""
    return template.get("default") if isinstance(template, dict) else template
