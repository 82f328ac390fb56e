"""Messages into a prompt: content in all its forms, roles, and errors that name the field."""

from __future__ import annotations

import json

import pytest

from wisp.edge.chat import ChatTemplate
from wisp.errors import InvalidRequest

PLAIN = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
STRICT = (
    "{% for message in messages %}{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no role ' + message.role) }}{% endif %}[{{ message.role }}]{{ message.content }}{% endfor %}"
)
USER = {"role": "user", "content": "hi"}


def render(messages: list[dict[str, object]], template: str | None = PLAIN, **options: object) -> str:
    return ChatTemplate(template, {"bos_token": "<s>"}).render(messages, options)


def test_special_tokens_and_the_generation_prompt_are_rendered() -> None:
    """The template sees the target's special tokens, and asks for the assistant's turn."""
    assert render([{"role": "system", "content": "be brief"}, USER]) == "<s>[system]be brief[user]hi[assistant]"


def test_text_parts_are_joined() -> None:
    """Content may be a list of text parts."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render([{"role": "user", "content": parts}]) == "<s>[user]one\ntwo[assistant]"


def test_null_content_is_empty() -> None:
    """A message without content, and without tool calls, is an empty one."""
    assert render([USER, {"role": "assistant", "content": None}]) == "<s>[user]hi[assistant][assistant]"


def test_tool_calls_reach_the_template_with_parsed_arguments() -> None:
    """A past tool call has no content; its arguments arrive as JSON text and reach the template as values."""
    template = (
        "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.arguments.city }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"city": "Oslo"})}}
    assert render([USER, {"role": "assistant", "content": None, "tool_calls": [call]}], template) == "hiOslo"


def test_the_developer_is_system_where_the_template_does_not_know_the_role() -> None:
    """A template that knows the role gets it, another one gets system."""
    message = {"role": "developer", "content": "be brief"}
    assert render([message]) == "<s>[developer]be brief[assistant]"
    assert render([message], STRICT) == "[system]be brief"


def test_options_reach_the_template() -> None:
    """chat_template_kwargs are the template's variables."""
    template = "{{ 'thinking' if enable_thinking else 'plain' }}"
    assert render([USER], template, enable_thinking=True) == "thinking"
    assert render([USER], PLAIN, add_generation_prompt=False) == "<s>[user]hi"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one"),
        ([{"role": "alien", "content": "hi"}], "role"),
        ([{"role": "user", "content": 7}], "content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text must be a string"),
        ([{"role": "assistant", "content": None, "tool_calls": ["x"]}], "function call"),
    ],
)
def test_messages_that_cannot_be_rendered_are_refused(messages: list[dict[str, object]], words: str) -> None:
    """The error names the field and what is wrong with it."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        render(messages)
    assert caught.value.field == "messages"


def test_an_error_of_the_template_is_the_callers() -> None:
    """What the template raises is shown to the caller."""
    with pytest.raises(InvalidRequest, match="no role tool"):
        render([{"role": "tool", "content": "42"}], STRICT)


def test_without_a_template_completions_are_recommended() -> None:
    """A base model has no chat."""
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        render([USER], None)


def test_the_conversation_cannot_be_replaced_by_an_option() -> None:
    """chat_template_kwargs may not name what the renderer itself sets."""
    with pytest.raises(InvalidRequest, match="chat_template") as caught:
        render([USER], PLAIN, chat_template="x")
    assert caught.value.field == "chat_template_kwargs"
