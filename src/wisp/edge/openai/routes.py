"""The endpoint's routes: chat, completions, models, health."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from wisp.config import LOOPBACK_HOSTS
from wisp.edge.device import Device
from wisp.edge.openai.choices import Choice, Choices
from wisp.edge.openai.errors import ApiError, as_api_error, context_exceeded, from_validation, invalid
from wisp.edge.openai.forms import ChatForm, CompletionForm, Form, Header, new_header
from wisp.edge.openai.logprobs import TokenTexts
from wisp.edge.openai.parameters import MODEL_ALIAS, chat_settings, check_model, completion_settings
from wisp.edge.openai.prompts import chat_prompt, completion_prompts
from wisp.edge.openai.schemas import ChatBody, CompletionBody, GenerationBody
from wisp.edge.openai.stream import ClientGone, EventStream, collect, while_connected
from wisp.edge.settings import GenerationSettings
from wisp.edge.text import TextStream
from wisp.errors import WispError
from wisp.logs import logger
from wisp.types import TokenId

log = logger(__name__)
_Body = TypeVar("_Body", bound=GenerationBody)
_CLIENT_CLOSED_REQUEST = 499


def create_app(device: Device) -> FastAPI:
    """The endpoint of a device that is ready."""
    app = FastAPI(title="WISP", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_Endpoints(device).router())
    app.add_api_route("/health", lambda: _health(device), methods=["GET"], response_model=None)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(WispError, _answer_error)
    app.add_exception_handler(Exception, _answer_error)
    app.add_exception_handler(ClientGone, _answer_nobody)
    app.add_exception_handler(HTTPException, _answer_http_error)
    return app


class _Endpoints:
    """Handlers of /v1 for one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._texts = TokenTexts(device.tokenizer)
        self._started = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1", dependencies=[Depends(self._check_key)])
        router.add_api_route("/models", self._models, methods=["GET"], response_model=None)
        router.add_api_route("/models/{name:path}", self._model, methods=["GET"], response_model=None)
        router.add_api_route("/chat/completions", self._chat, methods=["POST"], response_model=None)
        router.add_api_route("/completions", self._completion, methods=["POST"], response_model=None)
        return router

    def _check_key(self, request: Request) -> None:
        expected = self._device.config.api_key
        if expected is None:
            _refuse_foreign_pages(request)
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), expected.encode()):
            raise ApiError(401, "missing or wrong API key: send `Authorization: Bearer <key>`", code="invalid_api_key")

    async def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._card(self._device.target.model_id)]}

    async def _model(self, name: str) -> dict[str, Any]:
        check_model(name, self._device.target)
        return self._card(name)

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": MODEL_ALIAS}

    async def _chat(self, request: Request) -> Response:
        body = await _parse(request, ChatBody)
        check_model(body.model, self._device.target)
        settings = chat_settings(body, self._device.defaults)
        prompt = await asyncio.to_thread(chat_prompt, body, self._device)
        form = ChatForm(self._header("chatcmpl"), self._texts, bool(body.logprobs), body.include_usage)
        return await self._respond(request, body, form, self._choices([prompt], settings, "messages"))

    async def _completion(self, request: Request) -> Response:
        body = await _parse(request, CompletionBody)
        check_model(body.model, self._device.target)
        settings = completion_settings(body, self._device.defaults)
        prompts = await asyncio.to_thread(completion_prompts, body, self._device)
        echoes = [prompt.text if body.echo else "" for prompt in prompts for _ in range(settings.num_choices)]
        header = self._header("cmpl")
        form = CompletionForm(header, self._texts, body.logprobs is not None, body.include_usage, echoes)
        choices = self._choices([prompt.tokens for prompt in prompts], settings, "prompt")
        return await self._respond(request, body, form, choices)

    async def _respond(self, request: Request, body: GenerationBody, form: Form, choices: Choices) -> Response:
        try:
            await while_connected(request, choices.open())
            if body.stream:
                return EventStream(choices, form, include_usage=body.include_usage)
            finished = await while_connected(request, collect(choices))
        except BaseException:
            choices.close()  # whatever was cancelled before it began cannot do it
            raise
        return JSONResponse(form.whole(finished, choices.usage))

    def _choices(self, prompts: Sequence[Sequence[TokenId]], settings: GenerationSettings, field: str) -> Choices:
        context_length = self._device.target.context_length
        for prompt in prompts:
            if len(prompt) >= context_length:
                raise context_exceeded(len(prompt), context_length, field)
        choices = [
            self._choice(number * settings.num_choices + index, prompt, settings, index)
            for number, prompt in enumerate(prompts)
            for index in range(settings.num_choices)
        ]
        return Choices(choices, sum(len(prompt) for prompt in prompts))

    def _choice(self, number: int, prompt: Sequence[TokenId], settings: GenerationSettings, index: int) -> Choice:
        text = TextStream(self._device.tokenizer, settings.stop_strings, prompt)
        return Choice(number, self._device.generation(prompt, settings, index), text)

    def _header(self, prefix: str) -> Header:
        return new_header(prefix, time.time(), self._device.target.model_id)


def _refuse_foreign_pages(request: Request) -> None:
    """Without a key, no page of the web may use this endpoint through the browser of whoever visits it."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).hostname not in LOOPBACK_HOSTS:
        raise ApiError(403, f"pages of {origin} may not use this endpoint without an API key", code="foreign_origin")


async def _parse(request: Request, kind: type[_Body]) -> _Body:
    """The body, checked; whatever is wrong with it raises ApiError."""
    try:
        document = json.loads(await request.body())
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise invalid("body", "the body must be a JSON object")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise from_validation(error) from None


def _health(device: Device) -> Response:
    up = device.connection.is_up
    body = {"status": "ok" if up else "reconnecting", "model": device.target.model_id, "server": device.config.server}
    return JSONResponse(body, 200 if up else 503)


async def _answer_error(request: Request, error: Exception) -> Response:
    answer = as_api_error(error)
    if answer.status >= 500:
        log.error("request failed", method=request.method, path=request.url.path, error=str(error))
    return JSONResponse(answer.body, answer.status, headers=answer.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    log.info("the client went away", method=request.method, path=request.url.path)
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"
    return JSONResponse(ApiError(status, message, code="not_found" if status == 404 else None).body, status)
