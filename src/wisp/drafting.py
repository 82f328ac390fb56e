"""A policy session driving a draft engine: the loop that devices and the bench share.

Whatever goes wrong with a drafter costs speed, never text: the generation goes on without drafts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from wisp.engines.base import DraftEngine
from wisp.logs import logger
from wisp.policy.session import Session
from wisp.types import DraftedToken, GenerationRequest, SessionId, TokenId

log = logger(__name__)
_T = TypeVar("_T")


class DraftWorker:
    """One thread that owns a draft engine; sessions that wait for a token at the same time are drafted together."""

    def __init__(
        self,
        engine: DraftEngine,
        *,
        emulated_draft_time: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        executor: Executor | None = None,
    ) -> None:
        """`executor`: what runs the engine in place of a thread of its own; it must do one call after the other."""
        self.engine = engine
        self._emulated_draft_time = emulated_draft_time
        self._sleep = sleep
        self._thread = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="wisp-drafter")
        self._waiting: list[tuple[SessionId, asyncio.Future[DraftedToken | None]]] = []
        self._batching: asyncio.Task[None] | None = None

    async def open(self, session_id: SessionId, request: GenerationRequest) -> None:
        """Start a session and have the engine read its prompt: engines do that when they draft, so one token is."""
        await self._call(self.engine.open, session_id, request)
        await self._call(self.engine.draft, [session_id])

    async def draft(self, session_id: SessionId) -> DraftedToken | None:
        """One more drafted token of a session; None where there is nothing to propose."""
        future: asyncio.Future[DraftedToken | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((session_id, future))
        if self._batching is None or self._batching.done():
            self._batching = asyncio.create_task(self._draft_waiting())
        drafted = await future
        if self._emulated_draft_time > 0.0:
            await self._sleep(self._emulated_draft_time)
        return drafted

    async def commit(self, session_id: SessionId, num_accepted: int, tokens: Sequence[TokenId]) -> None:
        """End a session's round in the engine."""
        await self._call(self.engine.commit, session_id, num_accepted, tokens)

    def close(self, session_id: SessionId) -> None:
        """End a session, after whatever the engine still does for it."""
        for waiting, future in self._waiting:
            if waiting == session_id and not future.done():
                future.set_result(None)
        with contextlib.suppress(RuntimeError):  # shut down: the engine holds no session any more
            self._thread.submit(self._close, session_id)

    def shutdown(self) -> None:
        """Stop the thread and release the engine; blocks until the call that is running has returned."""
        self._thread.submit(self.engine.shutdown)
        self._thread.shutdown(wait=True)

    async def _call(self, method: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, method, *arguments)

    async def _draft_waiting(self) -> None:
        while self._waiting:
            batch = [(session_id, future) for session_id, future in self._waiting if not future.done()]
            self._waiting.clear()
            if batch:
                await self._draft_batch(batch)

    async def _draft_batch(self, batch: Sequence[tuple[SessionId, asyncio.Future[DraftedToken | None]]]) -> None:
        try:
            drafted = await self._call(self.engine.draft, [session_id for session_id, _ in batch])
            answers = list(zip(batch, drafted, strict=True))
        except Exception as error:  # noqa: BLE001 - a drafter may fail in any way; its sessions hear of it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), token in answers:
            if not future.done():
                future.set_result(token)

    def _close(self, session_id: SessionId) -> None:
        try:
            self.engine.close(session_id)
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and the session is over
            log.debug("the drafter could not close a session", session=session_id, error=repr(error))


@dataclass(slots=True)
class Drafting:
    """The drafter's side of one generation.

    Verdicts are only noted (`record`) and reach the engine before its next draft, so that rounds without a draft do
    not wait for the drafter, not even while it still reads the prompt.
    """

    worker: DraftWorker | None
    """None: nothing is ever drafted."""
    session_id: SessionId
    clock: Callable[[], float]
    _opening: asyncio.Task[None] | None = field(default=None, init=False)
    _num_accepted: int = field(default=0, init=False)
    _uncommitted: list[TokenId] = field(default_factory=list, init=False)
    _stale: bool = field(default=False, init=False)
    """Whether the engine has not yet heard of what was recorded."""

    @property
    def active(self) -> bool:
        """Whether drafts may still come in this generation."""
        return self._opening is not None

    def start(self, request: GenerationRequest) -> None:
        """Have the drafter read the prompt in the background."""
        if self.worker is not None and len(request.tokens) < self.worker.engine.context_length:
            self._stale = True  # the token that opening drafts is not wanted
            self._opening = asyncio.create_task(self.worker.open(self.session_id, request))

    async def extend(self, session: Session) -> None:
        """Draft as long as the session wants to and the drafter can; never raises."""
        if self.worker is None or self._opening is None or not session.wants_draft_token:
            return
        try:
            if self._opening.done():
                self._opening.result()
                await self._draft(self.worker, session)
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            log.warning("goes on without drafts: the drafter failed", session=self.session_id, error=repr(error))
            self.close()

    def record(self, num_accepted: int, tokens: Sequence[TokenId]) -> None:
        """Note what a verdict, or the loss of a round, made of the draft; `tokens` follow the accepted ones."""
        if not self._stale:
            self._num_accepted = num_accepted
        self._uncommitted += tokens
        self._stale = True

    def close(self) -> None:
        """End the drafter's session; nothing is drafted afterwards."""
        if self.worker is None or self._opening is None:
            return
        if not self._opening.done():
            self._opening.cancel()
        elif not self._opening.cancelled():
            self._opening.exception()
        self._opening = None
        self.worker.close(self.session_id)

    async def _draft(self, worker: DraftWorker, session: Session) -> None:
        await self._tell(worker)
        while session.wants_draft_token:
            if len(session.tokens) + len(session.draft) >= worker.engine.context_length:
                if not session.draft:
                    log.info("no more drafts: outgrown the drafter's context", session=self.session_id)
                    self.close()
                return
            drafted = await worker.draft(self.session_id)
            if drafted is None:
                return
            session.on_draft_token(drafted, self.clock())

    async def _tell(self, worker: DraftWorker) -> None:
        if self._stale:
            await worker.commit(self.session_id, self._num_accepted, tuple(self._uncommitted))
            self._uncommitted.clear()
            self._stale = False
