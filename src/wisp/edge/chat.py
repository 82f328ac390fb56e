"""Messages into a prompt, by the target's own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from wisp.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant", "tool")
_RENDERER = "transformers.utils.chat_template_utils"
_RESERVED = ("messages", "conversations", "chat_template", "tools", "documents", "return_assistant_tokens_mask")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The template and the special tokens it may name, both from the server."""

    template: str | None
    special_tokens: Mapping[str, str]

    def prepare(self) -> None:
        """Load what rendering needs, so that the first request does not wait for it."""
        if self.template:
            import_module(_RENDERER)

    def render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None) -> str:
        """The prompt that asks for the next assistant message. Raises InvalidRequest."""
        if not self.template:
            raise InvalidRequest(
                "this model has no chat template: use /v1/completions with a prompt of your own", "messages"
            )
        if not messages:
            raise InvalidRequest("messages must hold at least one message", "messages")
        for name in set(options or ()) & set(_RESERVED):
            raise InvalidRequest(f"chat_template_kwargs may not set {name}", "chat_template_kwargs")
        conversation = [_message(index, message) for index, message in enumerate(messages)]
        try:
            return self._render(conversation, options or {})
        except Exception as error:
            if not any(message["role"] == "developer" for message in conversation):
                raise _rejected(error) from error
        return self._render_without_developer(conversation, options or {})

    def _render_without_developer(self, conversation: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
        """Older templates know the developer's role by the name of system only."""
        renamed = [
            {**message, "role": "system"} if message["role"] == "developer" else message for message in conversation
        ]
        try:
            return self._render(renamed, options)
        except Exception as error:
            raise _rejected(error) from error

    def _render(self, conversation: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
        variables = {"add_generation_prompt": True, **self.special_tokens, **options}
        rendered = import_module(_RENDERER).render_jinja_template(
            [conversation], chat_template=self.template, **variables
        )
        return str(rendered[0][0])


def _rejected(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"the model's chat template does not take these messages: {error}", "messages")


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: text content, parsed tool arguments, no empty fields."""
    field = f"messages[{index}]"
    if message.get("role") not in ROLES:
        raise InvalidRequest(f"{field}.role must be one of {', '.join(ROLES)}, not {message.get('role')!r}", "messages")
    plain = {name: value for name, value in message.items() if value is not None}
    calls = plain.get("tool_calls")
    if calls:
        plain["tool_calls"] = [_tool_call(f"{field}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    content = message.get("content")
    plain["content"] = None if content is None and calls else _text(field, content)
    return plain


def _text(field: str, content: Any) -> str:
    """The text of a message's content: a string, a list of text parts or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{field}.content must be a string or a list of parts", "messages")
    return "\n".join(_part(f"{field}.content[{index}]", part) for index, part in enumerate(content))


def _part(field: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind not in ("text", "refusal"):
        raise InvalidRequest(f"{field}: parts of type {kind!r} are not supported, only text", "messages")
    text = part.get(kind)
    if not isinstance(text, str):
        raise InvalidRequest(f"{field}.{kind} must be a string", "messages")
    return text


def _tool_call(field: str, call: Any) -> dict[str, Any]:
    """A past tool call: its arguments arrive as JSON text, templates want them as values."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise InvalidRequest(f"{field} must be a function call", "messages")
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (TypeError, ValueError):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}
