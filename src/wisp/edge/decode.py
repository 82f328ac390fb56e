"""The decoding loop: one generation from its first token to its last, through drafts, verdicts and lost connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from wisp.drafting import Drafting
from wisp.errors import ConnectionLost, EngineError, ServerBusy, SessionLost, WispError
from wisp.logs import logger
from wisp.policy.session import Session
from wisp.types import (
    DecodeRequest,
    DraftRequest,
    FinishReason,
    GenerationRequest,
    TokenId,
    TokenLogprobs,
    Verdict,
)

log = logger(__name__)

OPENING_ATTEMPTS = 3
"""A generation that has not begun is refused rather than tried for ever: its caller can still go elsewhere."""

MAX_ENGINE_FAILURES = 3
"""In a row, without a token between them: a history on which the target always fails must not be retried for ever."""

LONGEST_PAUSE = 2.0
"""Seconds between attempts to take up a session again, at most."""


class Remote(Protocol):
    """A session on the server, as the decoding loop needs it: over gRPC, or in memory for tests."""

    def open(self, request: GenerationRequest, epoch: int) -> None:
        """Send the frame that opens the session, or opens it anew."""
        ...

    async def opened(self) -> None:
        """Wait until the server has taken the session. Raises ServerBusy, InvalidRequest and other errors of the tree."""
        ...

    def ask(self, request: DraftRequest | DecodeRequest) -> AsyncIterator[Verdict]:
        """Send a round at once; returns its verdicts. Raises ConnectionLost and other errors of the tree."""
        ...

    async def connected(self, within: float | None = None) -> None:
        """Wait for a connection to the server that the session started on, or one that serves the same model."""
        ...

    def close(self) -> None:
        """End the session, on the server too; needs no answer."""
        ...


@dataclass(frozen=True, slots=True)
class Committed:
    """Tokens that one verdict added to the output."""

    tokens: tuple[TokenId, ...]
    logprobs: tuple[TokenLogprobs, ...]
    """One per token when asked for, else none."""
    finish_reason: FinishReason | None


@dataclass(slots=True)
class Generation:
    """One generation: `open` it, then iterate over `stream()`; `close` may come at any time."""

    session: Session
    remote: Remote
    drafting: Drafting
    connect_timeout: float = 10.0
    """Seconds without a server after which `open` gives up."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _verdicts: AsyncIterator[Verdict] | None = field(default=None, init=False)

    async def open(self) -> None:
        """Have the server admit the session; the first token is asked for in the same breath.

        Raises ServerBusy, InvalidRequest, VocabularyMismatch, and ConnectionLost when there is no server.
        """
        try:
            await self._open()
        except BaseException:
            self.close()
            raise

    async def stream(self) -> AsyncGenerator[Committed, None]:
        """Committed tokens, verdict by verdict, until the generation ends; closes the session in any case."""
        num_failures = 0
        lost: WispError | None = None
        try:
            while self.session.finish_reason is None:
                try:
                    async for verdict in await self._running_round(lost):
                        if (committed := self._commit(verdict)).tokens or committed.finish_reason:
                            num_failures = 0
                            yield committed
                    self._verdicts, lost = None, None
                except (ConnectionLost, SessionLost, EngineError) as error:
                    num_failures += isinstance(error, EngineError)
                    if num_failures > MAX_ENGINE_FAILURES:
                        raise
                    self._verdicts, lost = None, error
        finally:
            self.close()

    def close(self) -> None:
        """End the session here and on the server."""
        self.drafting.close()
        self.remote.close()

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that the target agreed with."""
        return sum(record.num_accepted for record in self.session.records)

    @property
    def num_rejected(self) -> int:
        """Drafted tokens that were rejected or not looked at."""
        return sum(record.num_drafted - record.num_accepted for record in self.session.records)

    async def _open(self) -> None:
        request = self.session.generation
        for attempts_left in reversed(range(OPENING_ATTEMPTS)):
            await self.remote.connected(self.connect_timeout)
            try:
                self.remote.open(request, self.session.epoch)
                self._verdicts = await self._next_round()
                if not self.drafting.active:
                    self.drafting.start(request)
                await self.remote.opened()
            except (ConnectionLost, SessionLost) as error:
                if not attempts_left:
                    raise
                log.info("opening again", session=self.drafting.session_id, reason=str(error))
                request = self.session.reopen()
            else:
                return

    async def _running_round(self, lost: WispError | None) -> AsyncIterator[Verdict]:
        """The verdicts of the round that runs, or of the next one; a session that was `lost` is taken up again first."""
        if lost is not None:
            await self._resume(lost)
        if self._verdicts is None:
            self._verdicts = await self._next_round()
        return self._verdicts

    async def _next_round(self) -> AsyncIterator[Verdict]:
        self.session.begin_round(self.clock())
        await self.drafting.extend(self.session)
        return self.remote.ask(self.session.request(self.clock(), may_draft=self.drafting.active))

    def _commit(self, verdict: Verdict) -> Committed:
        num_drafted = len(self.session.draft)
        tokens = self.session.on_verdict(verdict, self.clock())
        num_accepted = min(verdict.num_accepted, num_drafted)
        self.drafting.record(num_accepted, tokens[num_accepted:])
        return Committed(tuple(tokens), verdict.logprobs if tokens else (), self.session.finish_reason)

    async def _resume(self, error: WispError) -> None:
        """Take the session up again where it stands: the history is here."""
        name = self.drafting.session_id
        log.warning("resuming", after_tokens=self.session.num_output_tokens, session=name, reason=str(error))
        pause = 0.0
        while True:
            await self.remote.connected()
            await self.sleep(pause)
            request = self.session.reopen()
            self.drafting.record(0, ())
            try:
                self.remote.open(request, self.session.epoch)
                await self.remote.opened()
            except ServerBusy as busy:
                log.info("the server is busy", waiting_s=busy.retry_after, session=name)
                pause = busy.retry_after
            except (ConnectionLost, SessionLost) as again:
                log.info("resuming again", session=name, reason=str(again))
                pause = min(2.0 * pause or 0.05, LONGEST_PAUSE)
            else:
                return


async def generate(generation: Generation) -> AsyncGenerator[Committed, None]:
    """Open a generation and run it to its end."""
    await generation.open()
    async for committed in generation.stream():
        yield committed
