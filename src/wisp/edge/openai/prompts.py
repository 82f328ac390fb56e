"""Prompts of both endpoints as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wisp.edge.device import Device
from wisp.edge.openai.errors import invalid
from wisp.edge.openai.schemas import ChatBody, CompletionBody
from wisp.types import TokenId


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and the text that an echo of it shows."""

    tokens: tuple[TokenId, ...]
    text: str


def chat_prompt(body: ChatBody, device: Device) -> tuple[TokenId, ...]:
    """The conversation by the target's chat template, which writes its special tokens itself. Raises InvalidRequest."""
    text = device.chat_template.render(body.messages, body.chat_template_kwargs)
    return tuple(device.tokenizer.encode(text, add_special_tokens=False).ids)


def completion_prompts(body: CompletionBody, device: Device) -> list[Prompt]:
    """The prompts of a request, each a text or token ids. Raises ApiError."""
    prompts = [_prompt(entry, device) for entry in _entries(body.prompt)]
    if not prompts:
        raise invalid("prompt", "prompt must not be an empty list")
    return prompts


def _entries(prompt: str | list[str] | list[int] | list[list[int]] | None) -> list[Any]:
    """One prompt or several, as a list of them."""
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    return [prompt] if prompt and isinstance(prompt[0], int) else list(prompt)


def _prompt(entry: str | list[TokenId], device: Device) -> Prompt:
    return _from_text(entry, device) if isinstance(entry, str) else _from_tokens(entry, device)


def _from_text(text: str, device: Device) -> Prompt:
    tokens = tuple(device.tokenizer.encode(text).ids) or _beginning(device)
    return Prompt(tokens, text)


def _from_tokens(tokens: list[TokenId], device: Device) -> Prompt:
    size = device.target.vocabulary_size
    unknown = [token for token in tokens if not 0 <= token < size]
    if unknown:
        raise invalid("prompt", f"prompt: {unknown[0]} is not a token id below {size}")
    return Prompt(tuple(tokens) or _beginning(device), device.tokenizer.decode(tokens))


def _beginning(device: Device) -> tuple[TokenId, ...]:
    """What an empty prompt stands for: the start of a text, where the model has a token for it."""
    name = device.target.special_tokens.get("bos_token")
    token = None if name is None else device.tokenizer.token_to_id(name)
    if token is None:
        raise invalid("prompt", "prompt must not be empty: this model has no token for the beginning of a text")
    return (token,)
