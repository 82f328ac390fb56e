"""The choices of one request: generations that run side by side, as text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from wisp.edge.decode import Committed, Generation
from wisp.edge.text import Piece, TextStream
from wisp.types import FinishReason


@dataclass(frozen=True, slots=True)
class Delta:
    """What one verdict added to one choice."""

    index: int
    pieces: tuple[Piece, ...]
    finish_reason: FinishReason | None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(slots=True)
class Choice:
    """One choice: a generation and the text that becomes of it."""

    index: int
    generation: Generation
    text: TextStream
    num_tokens: int = field(default=0, init=False)
    """Of the output, a stop token and those of a stop string included."""

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """What the choice grows by, until it ends; the generation must be open."""
        async with aclosing(self.generation.stream()) as stream:
            async for committed in stream:
                delta = self._take(committed)
                if delta.pieces or delta.finish_reason is not None:
                    yield delta
                if delta.finish_reason is not None:
                    return

    def _take(self, committed: Committed) -> Delta:
        pieces: list[Piece] = []
        logprobs = committed.logprobs or (None,) * len(committed.tokens)
        stop_token_ids = self.generation.session.generation.stop.stop_token_ids
        for token, entry in zip(committed.tokens, logprobs, strict=True):
            self.num_tokens += 1
            if token in stop_token_ids:
                break
            pieces += self.text.push(token, entry)
            if self.text.stopped:
                return Delta(self.index, tuple(pieces), FinishReason.STOP)
        if committed.finish_reason is None:
            return Delta(self.index, tuple(pieces), None)
        pieces += self.text.finish()
        return Delta(self.index, tuple(pieces), FinishReason.STOP if self.text.stopped else committed.finish_reason)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_accepted: int
    num_rejected: int


@dataclass(frozen=True, slots=True)
class Choices:
    """All choices of a request."""

    choices: Sequence[Choice]
    num_prompt_tokens: int
    """Each prompt counted once, however many choices continue it."""

    async def open(self) -> None:
        """Have the server admit every choice, or none: the first refusal is raised."""
        try:
            opening = [choice.generation.open() for choice in self.choices]
            _raise_first(await asyncio.gather(*opening, return_exceptions=True))
        except BaseException:
            self.close()
            raise

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Deltas of all choices as they come; leaving early ends every choice."""
        arrived: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        tasks = [asyncio.create_task(_forward(choice, arrived)) for choice in self.choices]
        num_running = len(tasks)
        try:
            while num_running:
                delta = await arrived.get()
                if isinstance(delta, Exception):
                    raise delta
                num_running -= delta.finish_reason is not None
                yield delta
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()

    def close(self) -> None:
        """End every choice's session."""
        for choice in self.choices:
            choice.generation.close()

    @property
    def usage(self) -> Usage:
        """Of all choices together, so far."""
        return Usage(
            self.num_prompt_tokens,
            sum(choice.num_tokens for choice in self.choices),
            sum(choice.generation.num_accepted for choice in self.choices),
            sum(choice.generation.num_rejected for choice in self.choices),
        )


def _raise_first(results: Sequence[BaseException | None]) -> None:
    for result in results:
        if result is not None:
            raise result


async def _forward(choice: Choice, arrived: asyncio.Queue[Delta | Exception]) -> None:
    try:
        async with aclosing(choice.deltas()) as deltas:
            async for delta in deltas:
                arrived.put_nowait(delta)
    except Exception as error:  # noqa: BLE001 - raised again where the deltas are read
        arrived.put_nowait(error)
