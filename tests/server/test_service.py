"""The service over real sockets: hello, frames, limits, broken devices, draining."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fakes import FakeTarget, fake_card, generate, tokenizer_json
from tests.server.device import PROMPT, RawDevice, config, connected, decode, draft, generation
from wisp.errors import ConfigError
from wisp.protocol import MAX_FRAME_BYTES, PROTOCOL_VERSION
from wisp.protocol import wisp_pb2 as pb
from wisp.server import service as service_module
from wisp.server.app import RunningServer, start_server
from wisp.types import SLO

N = len(PROMPT)


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    running = await start_server(FakeTarget(), config())
    yield running
    await running.stop(0.0)


async def generate_plainly(device: RawDevice, session: int, prompt: bytes, max_tokens: int = 12) -> None:
    """Run one session to its end and compare its output."""
    request = generation(prompt, max_tokens)
    await device.open(session, request)
    await device.opened()
    await device.decode(session, decode(1, len(prompt), max_tokens))
    verdicts = [await device.verdict() for _ in range(max_tokens)]
    assert [verdict.next_token for verdict in verdicts] == generate(request)
    await device.close(session)


async def test_a_generation_by_drafts_and_plain_decoding_gives_the_targets_output(server: RunningServer) -> None:
    """Prompt, first token plain, drafts of any quality, then plain tokens to the end."""
    request = generation(max_tokens=30)
    async with connected(server.address) as device:
        await device.open(7, request)
        assert (await device.opened()).session == 7
        history, number = list(PROMPT), 1
        await device.decode(7, decode(number, len(history)))
        history.append((await device.verdict()).next_token)
        while len(history) < N + 20:
            number += 1
            sent = draft(number, history, number % 4, 1)
            await device.draft(7, sent)
            verdict = await device.verdict()
            assert (verdict.num_committed, verdict.num_accepted) == (len(history), number % 4)
            history += [drafted.token for drafted in sent.tokens[: verdict.num_accepted]] + [verdict.next_token]
        await device.decode(7, decode(number + 1, len(history), 100))
        while not verdict.final or verdict.round == number:
            verdict = await device.verdict()
            history.append(verdict.next_token)
        assert verdict.finish_reason == pb.FINISH_REASON_LENGTH
        assert history[N:] == generate(request)


async def test_the_hello_says_what_a_device_has_to_know() -> None:
    """Model, vocabulary, limits, SLO classes."""
    settings = replace(
        config(max_sessions=9, max_draft_tokens=7), slo_classes=(SLO("only", 5.0, 1.0),), default_slo="only"
    )
    running = await start_server(FakeTarget(kv_capacity_tokens=1000), settings)
    async with connected(running.address) as device:
        hello, card = device.hello, fake_card()
        assert (hello.model_id, hello.vocabulary) == (card.model_id, card.vocabulary)
        assert (hello.vocabulary_size, list(hello.eos_token_ids)) == (card.vocabulary_size, list(card.eos_token_ids))
        assert hello.tokenizer_sha256 == hashlib.sha256(tokenizer_json()).hexdigest()
        assert hello.chat_template == card.chat_template
        assert hello.special_tokens_json == '{"eos_token": "<eos>"}'
        assert (hello.context_length, hello.max_draft_tokens, hello.max_sessions_per_stream) == (1000, 7, 9)
        assert [(slo.name, slo.tokens_per_s, slo.first_token_s) for slo in hello.slo_classes] == [("only", 5.0, 1.0)]
        assert hello.default_slo == "only"
        assert not hello.generation_defaults.HasField("temperature")
        assert hello.emulated
        assert list(hello.acceptance_rules) == [0, 1]
        instance = hello.instance
    async with connected(running.address) as device:
        assert device.hello.instance == instance
    await running.stop(0.0)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"protocol_version": 99}, pb.ERROR_CODE_VERSION, ["99", str(PROTOCOL_VERSION), "update"]),
        ({"model_id": "other"}, pb.ERROR_CODE_MODEL, ["other", "fake-target", "connect to another"]),
        ({"vocabulary": "abc"}, pb.ERROR_CODE_VOCABULARY, ["abc", fake_card().vocabulary, "n-gram"]),
    ],
)
async def test_a_device_that_does_not_fit_is_told_why(
    server: RunningServer, fields: dict[str, Any], code: int, words: list[str]
) -> None:
    """Both values and what to do; then the stream ends."""
    async with connected(server.address, greet=False) as device:
        frame = await device.greet(**fields)
        assert (frame.error.session, frame.error.code) == (0, code)
        assert all(word in frame.error.message for word in words)
        assert await device.ended() is grpc.StatusCode.OK


async def test_a_drafter_without_a_vocabulary_or_a_wish_fits(server: RunningServer) -> None:
    """An n-gram drafter has none."""
    async with connected(server.address, vocabulary="", model_id="fake-target") as device:
        assert device.hello.model_id == "fake-target"


BAD_STARTS = [
    (b"\xff\xff\xff", "no DeviceFrame"),
    (b"", "must be the hello"),
    (pb.DeviceFrame(close=pb.Close(session=1)).SerializeToString(), "must be the hello, not close"),
]


@pytest.mark.parametrize(("data", "complaint"), BAD_STARTS)
async def test_a_stream_that_does_not_start_with_a_hello_is_ended(
    server: RunningServer, data: bytes, complaint: str
) -> None:
    """With the reason."""
    async with connected(server.address, greet=False) as device:
        await device.send(data)
        error = await device.error()
        assert (error.session, error.code) == (0, pb.ERROR_CODE_PROTOCOL)
        assert complaint in error.message
        await device.ended()


async def test_silence_instead_of_a_hello_is_ended(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that says nothing must not stay for ever."""
    monkeypatch.setattr(service_module, "HELLO_TIMEOUT", 0.05)
    async with connected(server.address, greet=False) as device:
        assert "no hello within" in (await device.error()).message


BAD_FRAMES = [
    (b"\x0a\xff", "no DeviceFrame"),
    (b"", "without a body"),
    (pb.DeviceFrame(hello=pb.DeviceHello()).SerializeToString(), "second hello"),
    (pb.DeviceFrame(draft=pb.Draft()).SerializeToString(), "session 0"),
    (bytes(MAX_FRAME_BYTES + 1), "exceeds"),
]


@pytest.mark.parametrize(("data", "complaint"), BAD_FRAMES)
async def test_a_frame_that_cannot_be_understood_ends_its_stream_only(
    server: RunningServer, data: bytes, complaint: str
) -> None:
    """Another device's session goes on."""
    async with connected(server.address) as other, connected(server.address) as device:
        await other.open(1, generation())
        await other.opened()
        await device.send(data)
        error = await device.error()
        assert (error.session, error.code) == (0, pb.ERROR_CODE_PROTOCOL)
        assert complaint in error.message
        assert await device.ended() is grpc.StatusCode.OK
        await other.decode(1, decode(1, N))
        assert (await other.verdict()).next_token == generate(generation())[0]


async def test_a_frame_that_is_wrong_for_its_session_is_answered_there(server: RunningServer) -> None:
    """The stream and its other sessions go on."""
    wrong = [
        (pb.DeviceFrame(draft=pb.Draft(session=1, epoch=1, round=1)), "1..32 tokens, not 0"),
        (pb.DeviceFrame(draft=pb.Draft(session=1, epoch=1, round=1, tokens=[1] * 33)), "1..32 tokens, not 33"),
        (pb.DeviceFrame(draft=pb.Draft(session=1, epoch=1, round=1, tokens=[999])), "id 999 is beyond"),
        (pb.DeviceFrame(draft=pb.Draft(session=1, epoch=1, round=1, tokens=[1], rtt=float("nan"))), "rtt"),
        (pb.DeviceFrame(decode=pb.Decode(session=1, epoch=1, round=1)), "num_tokens"),
        (pb.DeviceFrame(decode=pb.Decode(session=1, epoch=1, num_tokens=1)), "counted from 1"),
        (pb.DeviceFrame(open=pb.Open(session=1, epoch=2)), "num_prompt_tokens"),
    ]
    async with connected(server.address) as device:
        await device.open(1, generation())
        await device.opened()
        for frame, complaint in wrong:
            await device.send(frame)
            error = await device.error()
            assert (error.session, error.code) == (1, pb.ERROR_CODE_PROTOCOL), error
            assert complaint in error.message
        await device.decode(9, decode(1, N))
        assert (await device.error()).code == pb.ERROR_CODE_SESSION_LOST
        await device.open(9, replace(generation(), slo="express"))
        error = await device.error()
        assert (error.session, error.code, error.field) == (9, pb.ERROR_CODE_INVALID, "slo")
        await device.decode(1, decode(1, N))
        assert (await device.verdict()).final


async def test_a_defect_of_the_server_is_told_to_the_session(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither the stream nor the server ends."""
    async with connected(server.address) as device:
        with monkeypatch.context() as patch:
            patch.setattr(server.registry, "open", lambda _stream, _message: 1 / 0)
            await device.open(1, generation())
            error = await device.error()
            assert (error.session, error.code) == (1, pb.ERROR_CODE_INTERNAL)
            assert "ZeroDivisionError" in error.message
        await generate_plainly(device, 1, PROMPT)


async def test_64_sessions_share_one_stream(server: RunningServer) -> None:
    """Each gets its own output; together they are verified in batches."""
    requests = {session: generation(b"session %d" % session, 10) for session in range(1, 65)}
    outputs: dict[int, list[int]] = {session: [] for session in requests}
    async with connected(server.address) as device:
        for session, request in requests.items():
            await device.open(session, request)
            await device.decode(session, decode(1, len(request.tokens), 10))
        num_opened = 0
        while any(len(output) < 10 for output in outputs.values()):
            frame = await device.read()
            if frame.WhichOneof("body") == "opened":
                num_opened += 1
            else:
                assert frame.WhichOneof("body") == "verdict", frame
                outputs[frame.verdict.session].append(frame.verdict.next_token)
    assert num_opened == 64
    assert outputs == {session: generate(request) for session, request in requests.items()}


async def test_a_busy_server_says_when_to_come_back() -> None:
    """BUSY, with a time."""
    running = await start_server(FakeTarget(), config(max_sessions=1))
    async with connected(running.address) as first, connected(running.address) as second:
        await first.open(1, generation())
        await first.opened()
        await second.open(2, generation())
        error = await second.error()
        assert (error.session, error.code) == (2, pb.ERROR_CODE_BUSY)
        assert error.retry_after > 0
        await first.close(1)
        await asyncio.sleep(0.05)
        await second.open(2, generation())
        await second.opened()
    await running.stop(0.0)


async def test_a_device_that_dies_in_the_middle_of_decoding_takes_its_session_up_again(server: RunningServer) -> None:
    """Another stream, a higher epoch, the history it had: the output is what it would have been."""
    request = generation(max_tokens=2000)
    expected = generate(request)
    async with connected(server.address) as device:
        await device.open(1, request)
        await device.opened()
        await device.decode(1, decode(1, N, 2000))
        output = [(await device.verdict()).next_token for _ in range(5)]
        device.call.cancel()
    async with connected(server.address) as device:
        again = generation(max_tokens=2000, output=output)
        await device.open(1, again, epoch=2)
        await device.opened()
        await device.decode(1, decode(1, N + 5, 10), epoch=2)
        output += [(await device.verdict()).next_token for _ in range(10)]
    assert output == expected[:15]


async def test_a_device_that_does_not_read_is_disconnected() -> None:
    """Its sessions decode no further, memory stays bounded, others are served."""
    running = await start_server(FakeTarget(), config(), stall_timeout=0.3)
    async with connected(running.address) as deaf, connected(running.address) as device:
        for session in range(1, 9):
            await deaf.open(session, generation(max_tokens=3900, num_top_logprobs=20))
            await deaf.decode(session, decode(1, N, 3900))
        sessions = running.registry._sessions
        while len(sessions) < 8 or any(session.stream is not None for session in sessions.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert sum(session.num_tokens - N for session in sessions.values()) < 8 * 1000
        await generate_plainly(device, 99, b"somebody else")
        assert await deaf.ended() is grpc.StatusCode.OK
    await running.stop(0.0)


async def test_the_tokenizer_is_sent_in_chunks(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they are the target's tokenizer.json."""
    monkeypatch.setattr(service_module, "TOKENIZER_CHUNK_BYTES", 1000)
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_stream("/wisp.v1.Verifier/FetchTokenizer")(b"")
        chunks = [pb.TokenizerChunk.FromString(data).data async for data in call]
    assert len(chunks) > 1
    assert b"".join(chunks) == tokenizer_json()


async def test_a_draining_server_finishes_its_rounds_and_sends_devices_away() -> None:
    """New sessions and rounds are refused, health says so, the running round is answered in full."""
    gate = threading.Event()
    running = await start_server(FakeTarget(on_step=lambda _: gate.wait(10)), config())
    async with connected(running.address) as device, grpc.aio.insecure_channel(running.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        probe = health_pb2.HealthCheckRequest(service="wisp.v1.Verifier")
        assert (await health.Check(probe)).status == health_pb2.HealthCheckResponse.SERVING
        for session in (1, 2):
            await device.open(session, generation())
            await device.opened()
        await device.decode(1, decode(1, N, 3))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(running.stop())
        await asyncio.sleep(0.05)
        assert (await health.Check(probe)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await device.open(3, generation())
        await device.decode(2, decode(1, N))
        for session in (3, 2):
            error = await device.error()
            assert (error.session, error.code) == (session, pb.ERROR_CODE_DRAINING)
        gate.set()
        assert [(await device.verdict()).final for _ in range(3)] == [False, False, True]
        error = await device.error()
        assert (error.session, error.code) == (0, pb.ERROR_CODE_DRAINING)
        await device.ended()
        await stopping
    await running.stop()


async def test_draining_ends_after_its_time() -> None:
    """A round that takes too long does not keep the server."""
    gate = threading.Event()
    running = await start_server(FakeTarget(on_step=lambda _: gate.wait(10)), config())
    async with connected(running.address) as device:
        await device.open(1, generation())
        await device.opened()
        await device.decode(1, decode(1, N, 3))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        stopping = asyncio.create_task(running.stop(0.1))
        assert (await device.error()).code == pb.ERROR_CODE_DRAINING
        assert time.monotonic() - started < 3.0
        gate.set()
        await stopping


async def test_a_second_server_on_the_same_port_is_refused(server: RunningServer) -> None:
    """Two servers on one port would share its devices at random."""
    with pytest.raises(ConfigError, match="another server"):
        await start_server(FakeTarget(), replace(config(), port=server.port))
