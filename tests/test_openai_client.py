"""The real `openai` client against a real device and a real server: everything that docs/openai.md promises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.edge.endpoint import KEY, Setup, everything, expected_text, server_config, until
from tests.fakes import FakeDrafter, FakeTarget
from wisp.engines.base import StepMember

MODEL = "fake-target"
MESSAGES: list[Any] = [{"role": "user", "content": "tell me a story"}]
CHAT_PROMPT = "user: tell me a story\nassistant:"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def setup(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Setup, None]:
    async with everything(tmp_path_factory.mktemp("cache")) as given:
        yield given


async def chat(setup: Setup, **fields: Any) -> Any:
    values = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 24, **fields}
    return await setup.client.chat.completions.create(**values)


async def complete(setup: Setup, **fields: Any) -> Any:
    values = {"model": MODEL, "prompt": "once upon", "temperature": 0, "max_tokens": 24, **fields}
    return await setup.client.completions.create(**values)


async def refusal(setup: Setup, **fields: Any) -> openai.APIStatusError:
    """The error that a chat request with these fields meets."""
    with pytest.raises(openai.APIStatusError) as caught:
        await chat(setup, **fields)
    return caught.value


async def all_closed(setup: Setup) -> None:
    """Wait until the server holds no session any more."""
    await until(lambda: not len(setup.server.registry))


async def test_chat_is_the_targets_own_text(setup: Setup) -> None:
    """One chat answer: the target's plain decoding, token for token, with usage and drafts accounted for."""
    answer = await chat(setup)
    assert answer.choices[0].message.content == expected_text(CHAT_PROMPT, 24)
    assert (answer.choices[0].message.role, answer.choices[0].finish_reason) == ("assistant", "length")
    assert (answer.model, answer.object) == (MODEL, "chat.completion")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(CHAT_PROMPT), 24)
    assert usage.total_tokens == usage.prompt_tokens + 24
    assert usage.completion_tokens_details.accepted_prediction_tokens > 0
    assert usage.completion_tokens_details.rejected_prediction_tokens >= 0
    await all_closed(setup)


async def test_a_streamed_chat_is_the_same_text(setup: Setup) -> None:
    """Role first, then text, then the finish reason, under one id; usage only where it was asked for."""
    chunks = [chunk async for chunk in await chat(setup, stream=True)]
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected_text(CHAT_PROMPT, 24)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].choices[0].delta.content is None
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_last_where_it_was_asked_for(setup: Setup) -> None:
    """The last chunk has no choices, and the numbers of the whole request."""
    chunks = [chunk async for chunk in await chat(setup, stream=True, stream_options={"include_usage": True})]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])


async def test_a_second_turn(setup: Setup) -> None:
    """The answer goes into the next question."""
    first = (await chat(setup)).choices[0].message
    messages = [*MESSAGES, first.model_dump(), {"role": "user", "content": [{"type": "text", "text": "go on"}]}]
    answer = await chat(setup, messages=messages)
    prompt = f"user: tell me a story\nassistant: {first.content}\nuser: go on\nassistant:"
    assert answer.choices[0].message.content == expected_text(prompt, 24)


async def test_choices_run_side_by_side_and_differ(setup: Setup) -> None:
    """N choices of one seed draw different noise, streaming or not."""
    answer = await chat(setup, n=3, temperature=1.0, seed=11)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert texts == [expected_text(CHAT_PROMPT, 24, temperature=1.0, seed=11, choice_index=i) for i in range(3)]
    assert len(set(texts)) == 3
    assert answer.usage.prompt_tokens == len(CHAT_PROMPT)
    assert answer.usage.completion_tokens == 3 * 24
    streamed = ["", "", ""]
    async for chunk in await chat(setup, n=3, temperature=1.0, seed=11, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


async def test_without_a_seed_answers_differ_with_one_they_repeat(setup: Setup) -> None:
    """The temperature is 1 where neither the request nor the target says otherwise."""
    silent = {"temperature": openai.NOT_GIVEN}
    texts = [(await chat(setup, **silent)).choices[0].message.content for _ in range(2)]
    assert texts[0] != texts[1]
    seeded = [(await chat(setup, **silent, seed=-5)).choices[0].message.content for _ in range(2)]
    assert seeded[0] == seeded[1]


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_logprobs_are_those_of_the_text(setup: Setup, stream: bool) -> None:
    """Their tokens joined are the text; each has its alternatives with bytes."""
    given = await chat(setup, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        choices = [chunk.choices[0] async for chunk in given]
        entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    else:
        entries = given.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == expected_text(CHAT_PROMPT, 24)
    assert len(entries) == 24
    assert all(entry.logprob == -0.25 and bytes(entry.bytes).decode() == entry.token for entry in entries)
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert entries[0].top_logprobs[0].token == entries[0].token


async def test_completion_logprobs_are_those_of_the_text(setup: Setup) -> None:
    """The older form: tokens, their log-probabilities, alternatives and offsets into the text."""
    choice = (await complete(setup, logprobs=1)).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs == [-0.25] * 24
    assert choice.logprobs.text_offset == list(range(24))
    assert all(token in top for token, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True))


async def test_completion_is_the_targets_own_text(setup: Setup) -> None:
    """Text and token ids name the same prompt; a stream gives the same text."""
    text = expected_text("once upon", 24)
    assert (await complete(setup)).choices[0].text == text
    ids = setup.endpoint.device.tokenizer.encode("once upon").ids
    assert (await complete(setup, prompt=ids)).choices[0].text == text
    assert "".join([chunk.choices[0].text async for chunk in await complete(setup, stream=True)]) == text


async def test_several_prompts_and_choices(setup: Setup) -> None:
    """Choices of each prompt follow one another, as texts or as ids."""
    answer = await complete(setup, prompt=["once upon", "a time"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [
        expected_text(prompt, 24) for prompt in ("once upon", "once upon", "a time", "a time")
    ]
    ids = [setup.endpoint.device.tokenizer.encode(prompt).ids for prompt in ("once upon", "a time")]
    assert [choice.text for choice in (await complete(setup, prompt=ids)).choices] == [
        expected_text(prompt, 24) for prompt in ("once upon", "a time")
    ]


async def test_echo_puts_the_prompt_first(setup: Setup) -> None:
    """Streaming or not, the prompt comes before its continuation."""
    text = "once upon" + expected_text("once upon", 24)
    assert (await complete(setup, echo=True)).choices[0].text == text
    chunks = [chunk async for chunk in await complete(setup, echo=True, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == text


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_text(setup: Setup, as_list: bool, stream: bool) -> None:
    """The text ends before it, however it is split among tokens and drafts, and the session ends on the server."""
    whole = expected_text(CHAT_PROMPT, 200)
    stop = whole[40:43]
    cut = whole[: whole.index(stop)]
    given = await chat(setup, stop=["not in there", stop] if as_list else stop, max_tokens=200, stream=stream)
    if stream:
        choices = [chunk.choices[0] async for chunk in given]
        text = "".join(choice.delta.content or "" for choice in choices)
        assert choices[-1].finish_reason == "stop"
    else:
        text = given.choices[0].message.content
        assert given.choices[0].finish_reason == "stop"
        assert given.usage.completion_tokens == len(cut) + len(stop)
    assert text == cut
    await all_closed(setup)


async def test_eos_ends_the_text(tmp_path: Path) -> None:
    """The target's EOS has no text but counts as a token; ignore_eos and stop_token_ids change what ends a text."""
    target = FakeTarget(eos_one_in=30)
    async with everything(tmp_path, target, FakeDrafter(eos_one_in=30)) as setup:
        text = expected_text(CHAT_PROMPT, 300, eos_one_in=30)
        answer = await chat(setup, max_tokens=300, logprobs=True)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text, "stop")
        assert answer.usage.completion_tokens == len(text) + 1
        assert "".join(entry.token for entry in answer.choices[0].logprobs.content) == text
        on = await chat(setup, max_tokens=len(text) + 20, extra_body={"ignore_eos": True})
        assert on.usage.completion_tokens == len(text) + 20
        stop = setup.endpoint.device.tokenizer.token_to_id(text[5])
        stopped = await chat(setup, max_tokens=300, extra_body={"stop_token_ids": [stop]})
        assert stopped.choices[0].message.content == text[: text.index(text[5])]


async def test_models_are_listed_by_name_and_alias(setup: Setup) -> None:
    """The server's model, also as `wisp`."""
    assert [model.id for model in (await setup.client.models.list()).data] == [MODEL]
    assert (await setup.client.models.retrieve(MODEL)).id == MODEL
    assert (await chat(setup, model="wisp")).model == MODEL
    with pytest.raises(openai.NotFoundError):
        await setup.client.models.retrieve("gpt-9")
    error = await refusal(setup, model="gpt-9")
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")


async def test_nulls_and_harmless_fields_change_nothing(setup: Setup) -> None:
    """Explicit nulls mean the default; fields for OpenAI's own service are ignored."""
    nulls = dict.fromkeys(("stop", "top_p", "n", "stream", "logit_bias", "tools", "response_format", "logprobs"))
    harmless = {
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "prediction": {"type": "content", "content": "x"},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
    }
    text = expected_text(CHAT_PROMPT, 24)
    for extra in (nulls, harmless):
        answer = await chat(setup, extra_body=extra)
        assert answer.choices[0].message.content == text


UNSUPPORTED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "x", "format": "wav"},
    "guided_json": {},
}
INVALID: dict[str, Any] = {
    "temperature": 3.0,
    "top_p": "high",
    "n": 0,
    "max_tokens": 0,
    "top_logprobs": 21,
    "stop": [""],
    "logit_bias": {"100000": 1.0},
    "stop_token_ids": [-1],
    "stream_options": {"include_usage": True},
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    "seed": "x",
    "min_p": 2.0,
}


@pytest.mark.parametrize("field", [*UNSUPPORTED, *INVALID])
async def test_what_cannot_be_honoured_is_refused_by_name(setup: Setup, field: str) -> None:
    """Nothing is left out silently: 400 in OpenAI's form, naming the field."""
    error = await refusal(setup, extra_body={"logprobs": True, field: {**UNSUPPORTED, **INVALID}[field]})
    assert (error.status_code, error.param, error.type) == (400, field, "invalid_request_error")
    assert error.body is not None
    assert set(error.body) == {"message", "type", "param", "code"}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("field", "value"),
    [("suffix", "x"), ("best_of", 3), ("logprobs", 21), ("prompt", []), ("prompt", [999]), ("prompt", "")],
)
async def test_completions_refuse_by_name_too(setup: Setup, field: str, value: Any) -> None:
    """The fields that only completions have."""
    with pytest.raises(openai.BadRequestError) as caught:
        await complete(setup, **{field: value})
    assert caught.value.param == field


async def test_a_prompt_beyond_the_context(setup: Setup) -> None:
    """Too long a prompt is told as OpenAI tells it; an answer ends where the context does."""
    error = await refusal(setup, messages=[{"role": "user", "content": "x" * 4096}])
    assert (error.status_code, error.code, error.param) == (400, "context_length_exceeded", "messages")
    answer = await complete(setup, prompt="x" * 4090, max_tokens=100)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (6, "length")


async def test_bodies_that_are_no_requests(setup: Setup) -> None:
    """Errors have OpenAI's form for whatever arrives."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=setup.endpoint.url, headers=headers) as client:
        answers = [
            await client.post("/chat/completions", content=b"{"),
            await client.post("/chat/completions", json=[1]),
            await client.post("/chat/completions", json={"model": MODEL}),
            await client.get("/nothing"),
            await client.get("/chat/completions"),
        ]
    assert [answer.status_code for answer in answers] == [400, 400, 400, 404, 405]
    assert all(set(answer.json()["error"]) == {"message", "type", "param", "code"} for answer in answers)
    assert answers[2].json()["error"]["param"] == "messages"


async def test_a_wrong_key_is_refused(setup: Setup) -> None:
    """The endpoint asks for the configured key, health for none."""
    with pytest.raises(openai.AuthenticationError) as caught:
        await setup.client.with_options(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    async with httpx.AsyncClient() as client:
        health = await client.get(setup.endpoint.url.removesuffix("/v1") + "/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")


async def test_pages_of_the_web_are_refused_where_no_key_is_asked_for(tmp_path: Path) -> None:
    """A page that somebody visits must not use the endpoint on their machine; local pages may."""
    async with everything(tmp_path, api_key=None) as setup, httpx.AsyncClient(base_url=setup.endpoint.url) as client:
        body = {"prompt": "x", "max_tokens": 1}
        status = {
            origin: (await client.post("/completions", json=body, headers={"Origin": origin})).status_code
            for origin in ("https://evil.example", "null", "http://localhost:3000")
        }
        assert (await client.post("/completions", json=body)).status_code == 200
    assert status == {"https://evil.example": 403, "null": 403, "http://localhost:3000": 200}


async def test_own_fields(setup: Setup) -> None:
    """`wisp` names the service level and the draft length; unknown ones are refused."""
    plain = await chat(setup, extra_body={"wisp": {"slo": "fast", "draft_tokens": 0}})
    assert plain.choices[0].message.content == expected_text(CHAT_PROMPT, 24)
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0
    error = await refusal(setup, extra_body={"wisp": {"slo": "ludicrous"}})
    assert (error.status_code, error.param) == (400, "wisp.slo")
    assert (await refusal(setup, extra_body={"wisp": {"speed": 9}})).param == "wisp.speed"


async def test_a_full_server_is_told_with_retry_after(tmp_path: Path) -> None:
    """429 with the time after which to try again; the client's own retries then succeed."""
    hold = threading.Event()

    def wait(members: Sequence[StepMember]) -> None:
        assert hold.wait(20.0)

    target = FakeTarget(on_step=wait)
    async with everything(tmp_path, target, server=server_config(max_sessions=1)) as setup:
        first = asyncio.create_task(chat(setup))
        await until(lambda: len(setup.server.registry) == 1)
        for stream in (False, True):
            error = await refusal(setup, stream=stream)
            assert (error.status_code, error.code) == (429, "server_busy")
            assert int(error.response.headers["retry-after"]) >= 1
        second = await refusal(setup, n=2)
        assert second.status_code == 429
        hold.set()
        assert (await first).choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_ends_its_session(tmp_path: Path, stream: bool) -> None:
    """Nobody reads the answer: the server stops working on it."""
    hold = threading.Semaphore(8)
    target = FakeTarget(on_step=lambda members: hold.acquire(timeout=20.0) and None)
    async with everything(tmp_path, target) as setup:
        if stream:
            answer = await chat(setup, stream=True, max_tokens=2000)
            await anext(aiter(answer))
            assert len(setup.server.registry) == 1
            await answer.close()
        else:
            waiting = asyncio.create_task(chat(setup, max_tokens=2000))
            await until(lambda: len(setup.server.registry) == 1)
            waiting.cancel()
        for _ in range(50):
            hold.release()
        await all_closed(setup)
        assert not setup.endpoint.device.connection._sessions
        for _ in range(5000):
            hold.release()


async def test_failures_in_mid_stream_are_the_last_event(tmp_path: Path) -> None:
    """An engine that keeps failing ends the stream with an error in OpenAI's form."""
    calls = 0

    def fail(members: Sequence[StepMember]) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("out of memory")

    async with everything(tmp_path, FakeTarget(on_step=fail)) as setup:
        stream = await chat(setup, stream=True, max_tokens=100)
        texts = []

        async def read() -> None:
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before the error counts

        with pytest.raises(openai.APIError, match="out of memory") as caught:
            await read()
        assert expected_text(CHAT_PROMPT, 100).startswith("".join(texts))
        assert "".join(texts)
        assert caught.value.type == "server_error"


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
async def test_both_acceptance_rules(tmp_path: Path, rule: str) -> None:
    """The rule that the device is configured with reaches drafter and target, with q where it needs one."""
    seen: list[Any] = []
    target = FakeTarget(on_step=lambda members: seen.extend(one for member in members for one in member.draft or ()))
    async with everything(tmp_path, target, rule=rule) as setup:
        answer = await chat(setup, temperature=1.0, seed=3)
        assert answer.choices[0].message.content == expected_text(CHAT_PROMPT, 24, temperature=1.0, seed=3)
    assert seen
    assert all((one.distribution is not None) == (rule == "rejection") for one in seen)


async def test_penalties_and_bias_reach_the_target(setup: Setup) -> None:
    """Sampling fields arrive at the server as they were given."""
    seen: list[Any] = []
    setup.target.on_step = lambda members: seen.extend(setup.target._sessions.values())
    extra = {"top_k": 5, "min_p": 0.25, "repetition_penalty": 1.5}
    await chat(
        setup,
        temperature=0.5,
        top_p=0.75,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"7": -100, "3": 1},
        seed=2**64 - 1,
        extra_body=extra,
    )
    setup.target.on_step = None
    sampling = seen[0].request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.75, 5, 0.25)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.5, 0.5, -0.5)
    assert (sampling.logit_bias, sampling.seed) == (((3, 1.0), (7, -100.0)), 2**64 - 1)
