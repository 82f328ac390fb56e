"""Responses of both endpoints, whole and in chunks, as OpenAI writes them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from wisp.edge.openai.choices import Delta, Usage
from wisp.edge.openai.logprobs import TokenTexts, chat_logprobs, completion_logprobs
from wisp.edge.text import Piece
from wisp.types import FinishReason


@dataclass(frozen=True, slots=True)
class Header:
    """What every chunk of one response repeats."""

    id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice that has ended."""

    index: int
    pieces: tuple[Piece, ...]
    finish_reason: FinishReason

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class Form(Protocol):
    """How an endpoint writes choices."""

    @property
    def header(self) -> Header:
        """What every chunk repeats."""
        ...

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Chunks before a choice's first text."""
        ...

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """Chunks for what a choice grew by."""
        ...

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The last chunk, where one was asked for."""
        ...

    def whole(self, choices: Sequence[Finished], usage: Usage) -> dict[str, Any]:
        """The response of a request that does not stream."""
        ...


@dataclass(frozen=True, slots=True)
class ChatForm:
    """POST /v1/chat/completions."""

    header: Header
    texts: TokenTexts
    with_logprobs: bool
    include_usage: bool

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._chunk(index, {"role": "assistant", "content": ""})]

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        chunks = []
        if delta.pieces:
            chunks.append(self._chunk(delta.index, {"content": delta.text}, self._logprobs(delta.pieces)))
        if delta.finish_reason is not None:
            chunks.append(self._chunk(delta.index, {}, None, delta.finish_reason))
        return chunks

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_body(usage)}

    def whole(self, choices: Sequence[Finished], usage: Usage) -> dict[str, Any]:
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": self._logprobs(choice.pieces),
                    "finish_reason": choice.finish_reason,
                }
                for choice in choices
            ],
            "usage": usage_body(usage),
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        return chat_logprobs(pieces, self.texts) if self.with_logprobs else None

    def _head(self, kind: str) -> dict[str, Any]:
        return _head(self.header, kind)


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """POST /v1/completions; `echoes` holds for each choice the prompt that comes before its text."""

    header: Header
    texts: TokenTexts
    with_logprobs: bool
    include_usage: bool
    echoes: Sequence[str]
    _lengths: dict[int, int] = field(default_factory=dict)
    """Of each choice's text so far."""

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [self._chunk(index, self.echoes[index])] if self.echoes[index] else []

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        logprobs = self._logprobs(delta.pieces, self._lengths.get(delta.index, 0))
        self._lengths[delta.index] = self._lengths.get(delta.index, 0) + len(delta.text)
        return [self._chunk(delta.index, delta.text, logprobs, delta.finish_reason)]

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**_head(self.header, "text_completion"), "choices": [], "usage": usage_body(usage)}

    def whole(self, choices: Sequence[Finished], usage: Usage) -> dict[str, Any]:
        written = [
            {
                "index": choice.index,
                "text": self.echoes[choice.index] + choice.text,
                "logprobs": self._logprobs(choice.pieces, 0),
                "finish_reason": choice.finish_reason,
            }
            for choice in choices
        ]
        return {**_head(self.header, "text_completion"), "choices": written, "usage": usage_body(usage)}

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        finish_reason: FinishReason | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self.include_usage else {}
        return {**_head(self.header, "text_completion"), "choices": [choice], **usage}

    def _logprobs(self, pieces: Sequence[Piece], offset: int) -> dict[str, Any] | None:
        return completion_logprobs(pieces, self.texts, offset) if self.with_logprobs else None


def new_header(prefix: str, created: float, model: str) -> Header:
    """The header of a new response."""
    return Header(f"{prefix}-{secrets.token_hex(12)}", int(created), model)


def usage_body(usage: Usage) -> dict[str, Any]:
    """`usage`, with what became of the drafted tokens."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.num_accepted,
            "rejected_prediction_tokens": usage.num_rejected,
        },
    }


def _head(header: Header, kind: str) -> dict[str, Any]:
    return {"id": header.id, "object": kind, "created": header.created, "model": header.model}
