"""What goes wrong between device and server costs time, never text: nothing is lost, repeated or changed."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.edge.endpoint import edge_of, everything, expected_text, server_config, until
from tests.edge.proxy import Proxy, proxy_to
from tests.fakes import FakeDrafter, FakeTarget, fake_card
from wisp.edge.app import Endpoint
from wisp.engines.base import StepMember
from wisp.errors import VocabularyMismatch
from wisp.server.app import RunningServer, start_server
from wisp.types import DraftedToken, SessionId

PROMPT = "once upon a time"
NUM_TOKENS = 60


@dataclass
class Interruption:
    """Holds the engine before its step of a number, so that a test can break something in the meantime."""

    step: int
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.reached = threading.Event()
        self.over = threading.Event()

    def __call__(self, members: Sequence[StepMember]) -> None:
        self.num_steps += 1
        if self.num_steps == self.step:
            self.reached.set()
            assert self.over.wait(20.0)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 20.0)


@dataclass
class Site:
    """Server, proxy and device; the server may be replaced."""

    server: RunningServer
    proxy: Proxy
    endpoint: Endpoint
    client: openai.AsyncOpenAI

    def __post_init__(self) -> None:
        self.servers = [self.server]

    async def complete(self, **fields: Any) -> Any:
        values = {"model": "wisp", "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, **fields}
        return await self.client.completions.create(**values)

    async def replace_server(self, target: FakeTarget | None = None, **config: Any) -> None:
        """Start another server in the place of the one that is there."""
        self.server = await start_server(target or FakeTarget(), replace(server_config(), **config))
        self.servers.append(self.server)
        self.proxy.port = self.server.port

    async def stop(self) -> None:
        """Stop every server that was ever started."""
        for server in self.servers:
            await server.stop(0.0)


@asynccontextmanager
async def site(cache: Path, target: FakeTarget, **fields: Any) -> AsyncGenerator[Site, None]:
    server = await start_server(target, server_config())
    async with proxy_to(server.port) as proxy, edge_of(proxy.address, cache, **fields) as (endpoint, client):
        given = Site(server, proxy, endpoint, client)
        try:
            yield given
        finally:
            await given.stop()


@pytest.fixture
def interruption() -> Interruption:
    return Interruption(step=5)


async def test_the_connection_is_cut(tmp_path: Path, interruption: Interruption) -> None:
    """The device connects again, opens the session with its history and goes on."""
    async with site(tmp_path, FakeTarget(on_step=interruption)) as given:
        answer = asyncio.create_task(given.complete())
        await interruption.wait()
        given.proxy.cut()
        interruption.over.set()
        assert (await answer).choices[0].text == expected_text(PROMPT, NUM_TOKENS)
        assert given.proxy.num_connections >= 2
        await until(lambda: not len(given.server.registry))


@pytest.mark.parametrize("stream", [False, True])
async def test_the_server_is_killed_and_restarted(tmp_path: Path, interruption: Interruption, stream: bool) -> None:
    """Another server process that knows nothing of the session takes it up where the device stands."""
    async with site(tmp_path, FakeTarget(on_step=interruption)) as given:
        answer = asyncio.create_task(_text(await given.complete(stream=True)) if stream else _whole(given.complete()))
        await interruption.wait()
        await given.replace_server()
        given.proxy.cut()
        interruption.over.set()
        assert await answer == expected_text(PROMPT, NUM_TOKENS)


async def _text(stream: Any) -> str:
    return "".join([chunk.choices[0].text async for chunk in stream])


async def _whole(answer: Any) -> str:
    return str((await answer).choices[0].text)


async def test_the_server_is_drained(tmp_path: Path, interruption: Interruption) -> None:
    """A server that shuts down sends its devices away; the next one goes on with their sessions."""
    async with site(tmp_path, FakeTarget(on_step=interruption)) as given:
        answer = asyncio.create_task(given.complete())
        await interruption.wait()
        drained = given.server
        stopping = asyncio.create_task(drained.stop(5.0))
        await until(lambda: drained.registry.draining)
        interruption.over.set()
        await stopping
        await given.replace_server()
        assert (await answer).choices[0].text == expected_text(PROMPT, NUM_TOKENS)


async def test_a_silent_stream_is_taken_for_dead(tmp_path: Path, interruption: Interruption) -> None:
    """Where no verdict comes for too long, the device opens another stream and goes on."""
    async with site(tmp_path, FakeTarget(on_step=interruption), round_timeout=0.5) as given:
        answer = asyncio.create_task(given.complete())
        await interruption.wait()
        given.proxy.stall()
        interruption.over.set()
        assert (await answer).choices[0].text == expected_text(PROMPT, NUM_TOKENS)
        assert given.proxy.num_connections >= 2


async def test_the_connection_is_cut_again_and_again(tmp_path: Path) -> None:
    """However often it breaks, with several sessions at once, every text is complete."""
    cut: list[Callable[[], None]] = []
    loop = asyncio.get_running_loop()
    steps = 0

    def break_often(members: Sequence[StepMember]) -> None:
        nonlocal steps
        steps += 1
        if steps % 7 == 0 and steps < 60:
            loop.call_soon_threadsafe(cut[0])

    async with site(tmp_path, FakeTarget(on_step=break_often)) as given:
        cut.append(given.proxy.cut)
        prompts = [f"{PROMPT} {number}" for number in range(4)]
        answers = await asyncio.gather(*(given.complete(prompt=prompt) for prompt in prompts))
        assert [answer.choices[0].text for answer in answers] == [expected_text(p, NUM_TOKENS) for p in prompts]
        assert given.proxy.num_connections > 3


async def test_many_sessions_share_one_connection(tmp_path: Path) -> None:
    """64 generations at once, greedy and sampled, over one stream: each is its own."""
    async with site(tmp_path, FakeTarget()) as given:
        requests = [(f"{PROMPT} {number}", number % 2, number) for number in range(64)]
        answers = await asyncio.gather(
            *(
                given.complete(prompt=prompt, temperature=warmth, seed=seed, max_tokens=32)
                for prompt, warmth, seed in requests
            )
        )
        for answer, (prompt, warmth, seed) in zip(answers, requests, strict=True):
            assert answer.choices[0].text == expected_text(prompt, 32, temperature=float(warmth), seed=seed)
        assert sum(answer.usage.completion_tokens_details.accepted_prediction_tokens for answer in answers) > 0
        assert given.proxy.num_connections <= 2, "one for the stream, one for the tokenizer"


async def test_emulated_distance_changes_nothing(tmp_path: Path) -> None:
    """Frames that are delayed keep their order."""
    async with everything(tmp_path, emulated_rtt=0.01, emulated_draft_time=0.001) as setup:
        answers = await asyncio.gather(
            *(
                setup.client.completions.create(model="wisp", prompt=PROMPT, max_tokens=24, temperature=0)
                for _ in range(3)
            )
        )
        assert {answer.choices[0].text for answer in answers} == {expected_text(PROMPT, 24)}


@dataclass(slots=True)
class FailingDrafter(FakeDrafter):
    """Works for some drafts, then fails in every one until it is repaired."""

    drafts_left: int = 10

    def draft(self, session_ids: Sequence[SessionId]) -> list[DraftedToken | None]:
        self.drafts_left -= 1
        if self.drafts_left < 0:
            raise RuntimeError("out of memory")
        return FakeDrafter.draft(self, session_ids)


async def test_the_drafter_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The text goes on in plain decoding; later generations draft again."""
    drafter = FailingDrafter()
    async with site(tmp_path, FakeTarget(), drafter=drafter) as given:
        failed = await given.complete()
        assert failed.choices[0].text == expected_text(PROMPT, NUM_TOKENS)
        assert "goes on without drafts" in caplog.text
        drafter.drafts_left = 1000
        repaired = await given.complete()
        assert repaired.choices[0].text == expected_text(PROMPT, NUM_TOKENS)
        accepted = [one.usage.completion_tokens_details.accepted_prediction_tokens for one in (failed, repaired)]
        assert accepted[1] > accepted[0]


async def test_a_drafter_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """The device does not start, and says both fingerprints."""
    target = FakeTarget()
    with pytest.raises(VocabularyMismatch) as caught:
        async with everything(tmp_path, target, FakeDrafter(vocabulary="0" * 64)):
            pytest.fail("the device started")
    assert "0" * 64 in str(caught.value)
    assert target.card.vocabulary in str(caught.value)
    assert f"{target.card.vocabulary_size} tokens" in str(caught.value)


@pytest.mark.parametrize("change", [{"model_id": "another"}, {"vocabulary": "f" * 64}])
async def test_the_server_comes_back_with_another_model(
    tmp_path: Path, interruption: Interruption, change: dict[str, str]
) -> None:
    """A text is not continued by another model: running and new requests fail, until the right one is back."""
    async with site(tmp_path, FakeTarget(on_step=interruption)) as given:
        answer = asyncio.create_task(given.complete())
        await interruption.wait()
        await given.replace_server(FakeTarget(card=replace(fake_card(), **change)))
        given.proxy.cut()
        interruption.over.set()
        with pytest.raises(openai.InternalServerError, match="vocabulary") as caught:
            await answer
        assert (caught.value.status_code, caught.value.code) == (503, "server_unavailable")
        with pytest.raises(openai.InternalServerError, match="vocabulary"):
            await given.complete()
        await given.server.stop(0.0)
        await given.replace_server()
        await until(lambda: given.endpoint.device.connection.is_up)
        assert (await given.complete()).choices[0].text == expected_text(PROMPT, NUM_TOKENS)


async def test_the_new_server_allows_shorter_drafts(tmp_path: Path, interruption: Interruption) -> None:
    """What runs and what comes keep to the new limit: a device outlives its server's options."""
    async with site(tmp_path, FakeTarget(on_step=interruption)) as given:
        answer = asyncio.create_task(given.complete())
        await interruption.wait()
        target = FakeTarget()
        await given.replace_server(target, max_draft_tokens=2)
        given.proxy.cut()
        interruption.over.set()
        assert (await answer).choices[0].text == expected_text(PROMPT, NUM_TOKENS)
        assert given.endpoint.device.target.max_draft_tokens == 2
        assert (await given.complete()).choices[0].text == expected_text(PROMPT, NUM_TOKENS)
        assert max(len(member.draft or ()) for step in target.steps for member in step) == 2


async def test_without_a_server_requests_are_refused_in_time(tmp_path: Path) -> None:
    """503 once connect_timeout is over, health says so too, and the device recovers by itself."""
    async with site(tmp_path, FakeTarget(), connect_timeout=0.3) as given:
        await given.server.stop(0.0)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                await given.complete(stream=stream)
            assert (caught.value.status_code, caught.value.code) == (503, "server_unreachable")
        await given.replace_server()
        await until(lambda: given.endpoint.device.connection.is_up)
        assert (await given.complete()).choices[0].text == expected_text(PROMPT, NUM_TOKENS)


async def test_reconnecting_is_logged(
    tmp_path: Path, interruption: Interruption, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever watches the device sees what happened and what comes next."""
    caplog.set_level(logging.INFO)
    async with site(tmp_path, FakeTarget(on_step=interruption)) as given:
        answer = asyncio.create_task(given.complete())
        await interruption.wait()
        await given.replace_server()
        given.proxy.cut()
        interruption.over.set()
        await answer
    for words in ("trying again in", "connected again to", "which was restarted", "resuming after"):
        assert words in caplog.text
