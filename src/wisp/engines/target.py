"""TargetEngine for any supported Hugging Face causal LM on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from wisp.engines import vocabulary
from wisp.engines.base import GenerationDefaults, ModelCard, StepMember, StepOutcome
from wisp.engines.fingerprint import weights_fingerprint
from wisp.engines.packed.batch import Segment
from wisp.engines.packed.kv import KVSequence
from wisp.engines.packed.loading import DEFAULTS, LoadedModel, LoadOptions, load
from wisp.engines.packed.residency import WORTH_COPYING, Residency, Resident, common_prefix
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
    """What one member of a step has to do: the history up to `prefill_end`, then the last token and `draft`."""

    session: _Session
    prefill_end: int
    draft: tuple[DraftedToken, ...] | None
    trimmed: DraftedToken | None = None
    """The token after `draft` where something was cut off: still proposed, never computed."""

    @property
    def num_prefill(self) -> int:
        return self.prefill_end - self.session.resident.num_cached

    @property
    def growth(self) -> tuple[KVSequence, int]:
        """The sequence, and how long it will be before anything is rolled back."""
        num_verified = 0 if self.draft is None else 1 + len(self.draft)
        return self.session.resident.sequence, self.prefill_end + num_verified

    @property
    def segment(self) -> Segment:
        tokens = self.session.history[self.session.resident.num_cached : self.prefill_end]
        if self.draft is None:
            return Segment(self.session.resident.sequence, tokens, 0)
        tokens += [self.session.history[-1], *(drafted.token for drafted in self.draft)]
        return Segment(self.session.resident.sequence, tokens, 1 + len(self.draft))

    @property
    def sampling_item(self) -> SamplingItem:
        request, draft = self.session.request, self.draft or ()
        return SamplingItem(self.session.history, request.num_prompt_tokens, request.sampling, draft, self.trimmed)


class TransformersTarget:
    """Verifies drafts with a transformers model; see TargetEngine.

    Open sessions may cache up to `kv_capacity_tokens` in units of `kv_page_tokens`; a step that would exceed this, with
    nothing left to free of the closed ones, raises EngineError before it computes anything.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.card = replace(model_card(loaded), weights=weights_fingerprint(loaded.packed.model))
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
        if len({member.session_id for member in members}) < len(members):
            raise EngineError("a session appears twice in one step")
        tasks = [self._task(member) for member in members]
        self._residency.make_room([task.growth for task in tasks])
        leaders, followers = _by_prefix(tasks)
        outcomes = self._compute(leaders)
        if followers:
            outcomes |= self._compute(followers)
        return [outcomes[id(task)] for task in tasks]

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
        session = self._session(member.session_id)
        num_history, num_cached = len(session.history), session.resident.num_cached
        end = num_cached + member.num_prefill_tokens
        if end > num_history - 1 or (member.draft is not None and end != num_history - 1):
            raise EngineError(
                f"session {member.session_id!r} has {num_history} tokens, {num_cached} of them cached: it cannot "
                f"compute {member.num_prefill_tokens} before its last"
            )
        if member.draft is None:
            return _Task(session, end, None)
        draft = self._useful(member.draft, session)
        left_out = member.draft[len(draft)] if len(draft) < len(member.draft) else member.trimmed
        return _Task(session, end, draft, left_out)

    def _useful(self, draft: tuple[DraftedToken, ...], session: _Session) -> tuple[DraftedToken, ...]:
        """The part of a draft that can be accepted: known ids, and the last token allowed is the target's own."""
        draft = draft[: max(0, session.tokens_left - 1)]
        size = self.card.vocabulary_size
        unknown = (i for i, drafted in enumerate(draft) if not 0 <= drafted.token < size)
        return draft[: next(unknown, len(draft))]

    def _compute(self, tasks: Sequence[_Task]) -> dict[int, StepOutcome]:
        """One forward pass, after what other sessions have cached was copied; outcomes by the identity of the task."""
        for task in tasks:
            self._residency.share(task.session.resident, task.num_prefill)
        segments = [segment for task in tasks if (segment := task.segment).tokens]
        verifying = [task for task in tasks if task.draft is not None]
        outcomes = {id(task): StepOutcome() for task in tasks}
        if not segments:
            return outcomes
        try:
            logits = self._packed.forward(segments)
        except EngineError:
            for segment in segments:
                self._pool.truncate(segment.sequence, segment.sequence.length)
            raise
        decisions = verify(logits, [task.sampling_item for task in verifying], self.card.vocabulary_size)
        for task, decision in zip(verifying, decisions, strict=True):
            outcomes[id(task)] = self._commit(task, decision)
        return outcomes

    def _commit(self, task: _Task, decision: Decision) -> StepOutcome:
        """Add what was decided to the history and roll the cache back to all of it but the last token."""
        session, draft = task.session, task.draft or ()
        end = cut(decision, draft, session.request.stop.stop_token_ids, session.tokens_left)
        session.history.extend(drafted.token for drafted in draft[: end.num_accepted])
        if end.next_token is not None:
            session.history.append(end.next_token)
        self._pool.truncate(session.resident.sequence, len(session.history) - 1)
        return StepOutcome(len(draft), end.num_accepted, end.next_token, end.finish_reason, end.logprobs)

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


def _by_prefix(tasks: Sequence[_Task]) -> tuple[list[_Task], list[_Task]]:
    """Those to compute first, and those that can then copy a prefix from one of them (the choices of one prompt)."""
    leaders: list[_Task] = []
    followers: list[_Task] = []
    fresh: list[_Task] = []
    for task in tasks:
        if task.session.resident.num_cached or task.num_prefill < WORTH_COPYING:
            leaders.append(task)
        elif any(_shares(task, other) for other in fresh):
            followers.append(task)
        else:
            fresh.append(task)
    return leaders + fresh, followers


def _shares(task: _Task, other: _Task) -> bool:
    """Whether `other` is about to cache most of what `task` needs."""
    mine, others = task.session, other.session
    if mine.resident.owner != others.resident.owner:
        return False
    limit = min(task.num_prefill, other.num_prefill)
    return 2 * common_prefix(mine.history, others.history, limit) > task.num_prefill


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
        dtype=str(loaded.packed.dtype).removeprefix("torch."),
        device=_device_name(loaded.packed.device),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _eos_token_ids(configured: int | list[int] | None, of_tokenizer: int | None) -> tuple[TokenId, ...]:
    """Those of the generation config, then the tokenizer's."""
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(int(token) for token in [*ids, of_tokenizer] if token is not None))


def _chat_template(template: str | dict[str, str] | None) -> str | None:
    """The default one where a tokenizer has several."""
    return template.get("default") if isinstance(template, dict) else template
