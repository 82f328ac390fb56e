"""One step of WISP's scheduler as one step of vLLM: which requests, how many positions, on which KV blocks.

vLLM's own scheduler decides nothing here; of it only the manager of the KV blocks is used. A session is a vLLM request
that is in a step when WISP says so and keeps its blocks in between; rollback is a smaller number of computed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from vllm.sampling_params import SamplingParams as VllmSamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.request import Request

from wisp.engines.base import StepMember
from wisp.engines.sampling import Decision
from wisp.engines.vllm.sampler import Verification
from wisp.errors import EngineError
from wisp.types import GenerationRequest, SessionId

_MAX_TOKENS = 1 << 30
"""WISP ends generations; vLLM is told of no end."""


@dataclass(slots=True, eq=False)
class _Session:
    """A session as a vLLM request."""

    request: Any
    generation: GenerationRequest
    known_to_workers: bool = False
    blocks_replaced: bool = False
    """The workers' list of its blocks is out of date as a whole."""

    @property
    def req_id(self) -> str:
        return str(self.request.request_id)


@dataclass(frozen=True, slots=True)
class _Task:
    """What a step does for one session: compute the positions up to `end`, the draft included."""

    member: StepMember
    session: _Session
    end: int

    @classmethod
    def of(cls, member: StepMember, session: _Session) -> _Task:
        request = session.request
        if member.draft is None:
            return cls(member, session, request.num_computed_tokens + member.num_prefill_tokens)
        return cls(member, session, request.num_tokens + len(member.draft))

    @property
    def verification(self) -> Verification | None:
        """None where only a part of the history is computed."""
        if self.member.draft is None:
            return None
        generation = self.session.generation
        return Verification(generation.num_prompt_tokens, generation.sampling, self.member.draft, self.member.trimmed)


@dataclass(slots=True)
class _Plan:
    """A step in the making: what vLLM's scheduler would hand to the workers."""

    new: list[Any] = field(default_factory=list)
    cached: Any = field(default_factory=CachedRequestData.make_empty)
    num_scheduled: dict[str, int] = field(default_factory=dict)
    drafts: dict[str, list[int]] = field(default_factory=dict)
    verifications: dict[str, Verification] = field(default_factory=dict)


class VllmCore:
    """The sessions of one vLLM engine, in vLLM's process; not thread-safe."""

    def __init__(self, engine_core: Any) -> None:
        self._executor = engine_core.model_executor
        self._kv = engine_core.scheduler.kv_cache_manager
        self._pool = self._kv.block_pool
        self._hasher = engine_core.request_block_hasher
        self._page = int(engine_core.scheduler.block_size)
        self._sessions: dict[SessionId, _Session] = {}
        self._ids = count()
        self._finished: set[str] = set()

    @property
    def page_tokens(self) -> int:
        """Tokens in a block."""
        return self._page

    @property
    def capacity_tokens(self) -> int:
        """What all blocks hold; one of them is vLLM's own."""
        return (int(self._kv.kv_cache_config.num_blocks) - 1) * self._page

    def open(self, session_id: SessionId, owner: str, generation: GenerationRequest) -> int:
        """Start or replace a session; returns how many of its tokens the prefix cache of `owner` holds."""
        if session_id in self._sessions:
            self.close(session_id)
        request = Request(
            request_id=str(next(self._ids)),
            prompt_token_ids=list(generation.tokens),
            sampling_params=VllmSamplingParams(temperature=0.0, max_tokens=_MAX_TOKENS),
            pooling_params=None,
            cache_salt=owner or None,
            block_hasher=self._hasher,
        )
        session = self._sessions[session_id] = _Session(request, generation)
        self._adopt(session, request.num_tokens - 1)
        return int(request.num_computed_tokens)

    def evict(self, session_id: SessionId) -> None:
        """Give a session's blocks back; what they hold can be found again until they are used for something else."""
        session = self._sessions[session_id]
        self._release(session)
        session.request.num_computed_tokens = 0
        session.blocks_replaced = True

    def close(self, session_id: SessionId) -> None:
        """End a session; its prefix stays findable until its blocks are needed."""
        session = self._sessions.pop(session_id)
        self._release(session)
        if session.known_to_workers:
            self._finished.add(session.req_id)

    def step(self, members: Sequence[StepMember]) -> list[Decision | None]:
        """Compute one batch; a decision for each member that verifies. Raises EngineError before it computes anything."""
        tasks = [_Task.of(member, self._sessions[member.session_id]) for member in members]
        for task in tasks:
            self._adopt_in_step(task)
        self._make_room(tasks)
        plan = _Plan()
        for task in tasks:
            self._schedule(task, plan)
        decisions = self._execute(plan) if plan.num_scheduled else {}
        return [_advance(task, decisions.get(task.session.req_id)) for task in tasks]

    def shutdown(self) -> None:
        """End vLLM's workers."""
        self._executor.shutdown()

    # Blocks

    def _adopt(self, session: _Session, limit: int) -> None:
        """Take what the prefix cache has of the first `limit` tokens, in whole blocks."""
        request = session.request
        blocks, num_cached, _ = self._kv.get_computed_blocks(request)
        num_cached = min(num_cached, limit) // self._page * self._page
        if not num_cached:
            return
        blocks = self._kv.truncate_computed_blocks(blocks, num_cached)
        if self._kv.allocate_slots(request, 0, num_cached, blocks) is not None:
            request.num_computed_tokens = num_cached

    def _adopt_in_step(self, task: _Task) -> None:
        """A session that was opened or evicted before its prefix came (back) into the cache looks for it again."""
        if task.session.request.num_computed_tokens == 0 and task.member.num_prefill_tokens >= self._page:
            self._adopt(task.session, task.member.num_prefill_tokens)

    def _make_room(self, tasks: Sequence[_Task]) -> None:
        """Take back blocks of rejected drafts if the step needs them. Raises EngineError where that is not enough."""
        needed = sum(max(0, self._num_pages(task.end) - len(self._blocks(task.session))) for task in tasks)
        if needed <= self._pool.get_num_free_blocks():
            return
        scheduled = {id(task.session) for task in tasks}
        for session in self._sessions.values():
            if id(session) not in scheduled:
                self._trim(session)
        if needed > (free := self._pool.get_num_free_blocks()):
            raise EngineError(
                f"the KV cache is full: {len(tasks)} sessions need {needed} more pages of {self._page} tokens and "
                f"{free} are free: evict some first, or give the cache more memory"
            )

    def _trim(self, session: _Session) -> None:
        """Give back the blocks past what is cached: room for drafts that were rejected."""
        blocks = self._blocks(session)
        keep = self._num_pages(session.request.num_computed_tokens)
        if len(blocks) > keep:
            surplus = blocks[keep:]
            del blocks[keep:]
            self._pool.free_blocks(reversed(surplus))
            session.blocks_replaced = True

    def _release(self, session: _Session) -> None:
        """Free all blocks, after those that the last step filled have been made findable."""
        request = session.request
        if request.num_computed_tokens:
            self._kv.cache_blocks(request, request.num_computed_tokens)
        self._kv.free(request)

    def _blocks(self, session: _Session) -> list[Any]:
        blocks: list[Any] = self._kv.coordinator.single_type_managers[0].req_to_blocks.get(session.req_id, [])
        return blocks

    def _num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page)

    # Steps

    def _schedule(self, task: _Task, plan: _Plan) -> None:
        """Add one member to the plan; there is room for it."""
        session, request = task.session, task.session.request
        num_new = task.end - request.num_computed_tokens
        if num_new <= 0:
            return  # the prefix cache had all of it
        new_blocks = self._kv.allocate_slots(request, num_new)
        if new_blocks is None:
            raise EngineError("the KV cache is full: vLLM refused blocks that were counted as free")
        plan.num_scheduled[session.req_id] = num_new
        if (verification := task.verification) is not None:
            plan.verifications[session.req_id] = verification
            if verification.draft:
                plan.drafts[session.req_id] = [drafted.token for drafted in verification.draft]
        if session.known_to_workers:
            self._schedule_known(session, new_blocks, plan.cached)
        else:
            plan.new.append(self._new_data(session))
        session.known_to_workers, session.blocks_replaced = True, False

    def _schedule_known(self, session: _Session, new_blocks: Any, cached: Any) -> None:
        request, req_id = session.request, session.req_id
        cached.req_ids.append(req_id)
        cached.num_computed_tokens.append(request.num_computed_tokens)
        cached.num_output_tokens.append(request.num_output_tokens)
        if session.blocks_replaced:
            cached.resumed_req_ids.add(req_id)
            cached.new_block_ids.append(self._kv.get_block_ids(req_id))
        else:
            cached.new_block_ids.append(new_blocks.get_block_ids(allow_none=True))

    def _new_data(self, session: _Session) -> Any:
        request = session.request
        return NewRequestData(
            req_id=session.req_id,
            prompt_token_ids=request.prompt_token_ids,
            mm_features=[],
            sampling_params=request.sampling_params,
            pooling_params=None,
            block_ids=self._kv.get_block_ids(session.req_id),
            num_computed_tokens=request.num_computed_tokens,
            lora_request=None,
        )

    def _execute(self, plan: _Plan) -> dict[str, Decision]:
        output = SchedulerOutput(
            scheduled_new_reqs=plan.new,
            scheduled_cached_reqs=plan.cached,
            num_scheduled_tokens=plan.num_scheduled,
            total_num_scheduled_tokens=sum(plan.num_scheduled.values()),
            scheduled_spec_decode_tokens=plan.drafts,
            scheduled_encoder_inputs={},
            finished_req_ids=self._finished,
            free_encoder_mm_hashes=[],
            new_block_ids_to_zero=self._blocks_to_zero(),
        )
        output.wisp_verifications = plan.verifications
        self._finished = set()
        result = self._executor.execute_model(output)
        if result is None:
            result = self._executor.sample_tokens(None)
        decisions: dict[str, Decision] = result.wisp_decisions
        return decisions

    def _blocks_to_zero(self) -> list[int] | None:
        ids: list[int] = self._kv.take_new_block_ids()
        return ids if ids and self._kv.kv_cache_config.needs_kv_cache_zeroing else None


def _advance(task: _Task, decision: Decision | None) -> Decision | None:
    """Book what was computed: after a verification all of the history but its last token is cached."""
    request = task.session.request
    if task.member.draft is None or decision is None:
        request.num_computed_tokens = task.end
        return None
    accepted = [drafted.token for drafted in task.member.draft[: decision.num_accepted]]
    request.append_output_token_ids([*accepted, decision.next_token])
    request.num_computed_tokens = request.num_tokens - 1
    return decision
