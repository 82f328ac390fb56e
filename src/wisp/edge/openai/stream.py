"""Answers that end when their client goes away: event streams, and work for a response that does not stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wisp.edge.openai.choices import Choices
from wisp.edge.openai.errors import as_api_error
from wisp.edge.openai.forms import Finished, Form
from wisp.edge.text import Piece
from wisp.errors import WispError
from wisp.logs import logger

log = logger(__name__)
_T = TypeVar("_T")


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled when the client goes away. Raises ClientGone."""
    task = asyncio.create_task(work)
    return await _first(task, request.receive)


async def collect(choices: Choices) -> list[Finished]:
    """Run all choices to their end."""
    pieces: dict[int, list[Piece]] = {choice.index: [] for choice in choices.choices}
    finished = []
    async with aclosing(choices.deltas()) as deltas:
        async for delta in deltas:
            pieces[delta.index] += delta.pieces
            if delta.finish_reason is not None:
                finished.append(Finished(delta.index, tuple(pieces[delta.index]), delta.finish_reason))
    return sorted(finished, key=lambda choice: choice.index)


class EventStream(Response):
    """The chunks of opened choices as server-sent events; a failure on the way is the last event."""

    media_type = "text/event-stream"

    def __init__(self, choices: Choices, form: Form, *, include_usage: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._choices = choices
        self._form = form
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _first(asyncio.create_task(self._send_all(send)), receive)
        except (ClientGone, OSError):
            log.info("the client went away", response=self._form.header.id)
        finally:
            self._choices.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events()) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[str, None]:
        try:
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    yield _event(chunk)
        except WispError as error:
            log.warning("response cut short", response=self._form.header.id, reason=str(error))
            yield _event(as_api_error(error).body)
        except Exception as error:
            log.exception("response failed", response=self._form.header.id)
            yield _event(as_api_error(error).body)
        else:
            yield "data: [DONE]\n\n"

    async def _chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        for choice in self._choices.choices:
            for chunk in self._form.opening(choice.index):
                yield chunk
        async with aclosing(self._choices.deltas()) as deltas:
            async for delta in deltas:
                for chunk in self._form.chunks(delta):
                    yield chunk
        if self._include_usage:
            yield self._form.usage_chunk(self._choices.usage)


async def _first(task: asyncio.Task[_T], receive: Receive) -> _T:
    """The task's result, unless the client disconnects before; the task is over in either case."""
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
