"""TargetEngine for any supported Hugging Face causal LM on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wisp.engines.base import ModelCard, StepMember, StepOutcome
from wisp.engines.card import model_card
from wisp.engines.fingerprint import weights_fingerprint
from wisp.engines.generation import Generation, check_members, check_request
from wisp.engines.packed.batch import Segment
from wisp.engines.packed.kv import KVSequence
from wisp.engines.packed.loading import DEFAULTS, LoadedModel, LoadOptions, load
from wisp.engines.packed.residency import WORTH_COPYING, Residency, Resident, common_prefix
from wisp.engines.processing import SamplingItem
from wisp.engines.sampling import Decision, verify
from wisp.errors import EngineError
from wisp.types import DraftedToken, GenerationRequest, SessionId, TokenId


@dataclass(slots=True, eq=False)
class _Session(Generation):
    """One session: its history and what of it is cached."""

    resident: Resident


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
        self.card = _card(loaded)
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
        check_request(request, self.card.vocabulary_size, min(self.card.context_length, self.kv_capacity_tokens))
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
        check_members(members)
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
        end = session.prefill_end(member, session.resident.num_cached)
        if member.draft is None:
            return _Task(session, end, None)
        draft = session.useful(member.draft, self.card.vocabulary_size)
        left_out = member.draft[len(draft)] if len(draft) < len(member.draft) else member.trimmed
        return _Task(session, end, draft, left_out)

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
        session = task.session
        outcome = session.commit(decision, task.draft or ())
        self._pool.truncate(session.resident.sequence, len(session.history) - 1)
        return outcome


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


def _card(loaded: LoadedModel) -> ModelCard:
    """What devices have to know of a loaded model."""
    return model_card(
        loaded.model_id,
        loaded.tokenizer,
        loaded.packed.model.generation_config.to_diff_dict(),
        tokenizer_json=loaded.tokenizer_json,
        vocabulary_size=loaded.vocabulary_size,
        context_length=loaded.context_length,
        dtype=str(loaded.packed.dtype).removeprefix("torch."),
        device=_device_name(loaded.packed.device),
        weights=weights_fingerprint(loaded.packed.model),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
