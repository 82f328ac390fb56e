"""Whatever a device sends, the server stays up and other devices' sessions go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeTarget, generate
from tests.protocol.messages import messages
from tests.server.device import END, PROMPT, RawDevice, config, connected, decode, generation, hello_frame
from wisp.protocol import wisp_pb2 as pb
from wisp.server.app import RunningServer, start_server

T = TypeVar("T")
WITNESS, LONG = 77, 3000


@dataclass
class Running:
    """A server on an event loop of its own thread, and a session on it that others must not disturb."""

    server: RunningServer
    witness: RawDevice
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    history: list[int]
    round: int = 0

    async def witness_goes_on(self) -> None:
        """One more token of the witness session, and it is the right one."""
        self.round += 1
        await self.witness.decode(WITNESS, decode(self.round, len(self.history)))
        verdict = await self.witness.verdict()
        assert verdict.final
        self.history.append(verdict.next_token)
        expected = generate(generation(max_tokens=len(self.history) - len(PROMPT)))
        assert self.history[len(PROMPT) :] == expected


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def start() -> tuple[RunningServer, Any, RawDevice]:
        server = await start_server(FakeTarget(), config(max_sessions=32))
        manager = connected(server.address)
        device = await manager.__aenter__()
        await device.open(WITNESS, generation(max_tokens=LONG))
        await device.opened()
        return server, manager, device

    async def stop() -> None:
        await manager.__aexit__(None, None, None)
        await server.stop(0.0)

    server, manager, device = run(start())
    yield Running(server, device, run, list(PROMPT))
    run(stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def send_all(address: str, frames: list[bytes]) -> list[pb.ServerFrame]:
    """Send frames on a stream of their own; what came back until the server ended it, or was done with them."""
    answers = []
    async with connected(address, greet=False) as device:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for frame in frames:
                await device.send(frame)
            await device.call.done_writing()
        async with asyncio.timeout(20):
            while (data := await device.call.read()) is not END:
                answers.append(pb.ServerFrame.FromString(data))
    return answers


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.booleans())
def test_random_bytes_end_their_stream_with_an_error(running: Running, data: list[bytes], greet: bool) -> None:
    """Before the hello and after it."""
    frames = [hello_frame().SerializeToString(), *data] if greet else data
    answers = running.run(send_all(running.server.address, frames))
    running.run(running.witness_goes_on())
    assert answers[-1].WhichOneof("body") in {"error", "hello"}


@settings(max_examples=120)
@given(st.lists(messages(pb.DeviceFrame.DESCRIPTOR), min_size=1, max_size=6))
def test_nonsense_in_well_formed_frames_is_survived(running: Running, nonsense: list[pb.DeviceFrame]) -> None:
    """Every field may hold anything; what comes back is well-formed, and the others go on."""
    frames = [hello_frame().SerializeToString(), *[frame.SerializeToString() for frame in nonsense]]
    answers = running.run(send_all(running.server.address, frames))
    running.run(running.witness_goes_on())
    assert answers[0].WhichOneof("body") == "hello"
    assert all(answer.error.message for answer in answers if answer.WhichOneof("body") == "error")


@settings(max_examples=60)
@given(st.data())
def test_nonsense_for_a_session_that_is_open_is_survived(running: Running, data: st.DataObject) -> None:
    """Drafts, decodes, cancels and closes of small numbers, so that many of them are nearly right."""
    small = st.integers(0, 3)
    kinds: dict[str, Any] = {"draft": pb.Draft, "decode": pb.Decode, "cancel": pb.Cancel, "close": pb.Close}
    frames = [hello_frame().SerializeToString()]
    epoch = data.draw(st.integers(1, 2**32 - 1))
    opening = pb.Open(session=9, epoch=epoch, tokens=PROMPT, num_prompt_tokens=1, max_tokens=200)
    opening.sampling.top_p = opening.sampling.repetition_penalty = 1.0
    frames.append(pb.DeviceFrame(open=opening).SerializeToString())
    for _ in range(data.draw(st.integers(1, 8))):
        name = data.draw(st.sampled_from(sorted(kinds)))
        fields: dict[str, Any] = {"session": 9, "epoch": epoch}
        if name != "close":
            fields["round"] = data.draw(small)
        if name in {"draft", "decode"}:
            fields["num_committed"] = len(PROMPT) + data.draw(small)
        if name == "draft":
            fields["tokens"] = data.draw(st.lists(st.integers(0, 300), max_size=4))
        if name == "decode":
            fields["num_tokens"] = data.draw(small)
        frames.append(pb.DeviceFrame(**{name: kinds[name](**fields)}).SerializeToString())
    answers = running.run(send_all(running.server.address, frames))
    running.run(running.witness_goes_on())
    finals = [answer.verdict.round for answer in answers if answer.verdict.final]
    assert len([answer for answer in answers if answer.WhichOneof("body") == "hello"]) == 1
    assert all(0 < number < 4 for number in finals)
