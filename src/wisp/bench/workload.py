"""The rounds that the benchmarks run: sessions of a fixed shape whose drafts are random, so mostly rejected."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, cast

import grpc
import grpc.aio
import numpy as np
from tokenizers import Tokenizer, models

from wisp.engines import vocabulary
from wisp.engines.base import ModelCard
from wisp.engines.timed import RecordedOutputs
from wisp.errors import EngineError
from wisp.protocol import PROTOCOL_VERSION, frames
from wisp.protocol import wisp_pb2 as pb
from wisp.protocol.wisp_pb2_grpc import VerifierStub
from wisp.types import DraftedToken, DraftRequest, GenerationRequest, SamplingParams, StopRules

NUM_SESSIONS = 16
NUM_PROMPT_TOKENS = 64
NUM_DRAFTED = 4
VOCABULARY_SIZE = 2048
OUTPUT_TOKENS = 100_000


@cache
def prompt() -> tuple[int, ...]:
    """The prompt of every session; the seed is arbitrary."""
    return tuple(np.random.default_rng(11).integers(5, VOCABULARY_SIZE, NUM_PROMPT_TOKENS).tolist())


def bare_card() -> ModelCard:
    """A model card without a model."""
    words = {f"w{index}": index for index in range(VOCABULARY_SIZE)}
    data = Tokenizer(models.WordLevel(words)).to_str().encode()
    return ModelCard("bare", data, vocabulary.fingerprint(data), VOCABULARY_SIZE, 2 * OUTPUT_TOKENS, ())


def bare_recording() -> RecordedOutputs:
    """What the emulated target says: token 1, for ever."""
    return RecordedOutputs({prompt(): (1,) * OUTPUT_TOKENS})


class ServedProcess:
    """A `wisp.bench.served` process, spoken to through its standard input and output."""

    def __init__(self, process: subprocess.Popen[str], asks: IO[str], answers: IO[str]) -> None:
        self._process, self._asks, self._answers = process, asks, answers
        self.address: str = self._read()["address"]

    def account(self) -> Mapping[str, float]:
        """What it has done since it started."""
        self._asks.write("account\n")
        self._asks.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise EngineError(f"the server process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def served(argument: str) -> Iterator[ServedProcess]:
    """A server in a process of its own, ended afterwards."""
    command = [sys.executable, "-m", "wisp.bench.served", argument]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        asks, answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        try:
            yield ServedProcess(process, asks, answers)
        finally:
            asks.close()


@dataclass(slots=True)
class BenchSession:
    """One session that sends a random draft as soon as it has the verdict on the last one."""

    number: int
    stream: Any
    rng: np.random.Generator
    length: int = NUM_PROMPT_TOKENS
    round: int = 0

    async def open(self) -> None:
        """Send the frame that opens it."""
        request = GenerationRequest(prompt(), len(prompt()), SamplingParams(), StopRules(OUTPUT_TOKENS // 100))
        await self.stream.write(pb.DeviceFrame(open=frames.open_to_wire(self.number, 0, request)))

    async def draft(self) -> None:
        """Send the next draft."""
        self.round += 1
        tokens = tuple(DraftedToken(token) for token in self.rng.integers(5, VOCABULARY_SIZE, NUM_DRAFTED).tolist())
        request = DraftRequest(self.round, self.length, tokens, (0.5,) * NUM_DRAFTED, 40.0, 0.02)
        await self.stream.write(pb.DeviceFrame(draft=frames.draft_to_wire(self.number, 0, request)))

    def take(self, verdict: pb.Verdict) -> None:
        """Note what was committed."""
        self.length += verdict.num_accepted + verdict.HasField("next_token")


def _stub(channel: Any) -> Any:
    return cast("Any", VerifierStub)(channel)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Any]:
    """A stream after its hello."""
    async with grpc.aio.insecure_channel(address) as channel:
        stream = _stub(channel).Connect()
        await stream.write(pb.DeviceFrame(hello=pb.DeviceHello(protocol_version=PROTOCOL_VERSION)))
        await stream.read()
        try:
            yield stream
        finally:
            stream.cancel()


async def run_rounds(address: str, num_sessions: int, num_rounds: int) -> float:
    """Run rounds until `num_rounds` verdicts have come; returns seconds from the first draft to the last verdict."""
    async with connected(address) as stream:
        seeds = np.random.default_rng(5).spawn(num_sessions)
        numbers = [secrets.randbits(63) + 1 for _ in range(num_sessions)]
        sessions = {n: BenchSession(n, stream, rng) for n, rng in zip(numbers, seeds, strict=True)}
        for session in sessions.values():
            await session.open()
        started = time.perf_counter()
        for session in sessions.values():
            await session.draft()
        remaining = num_rounds
        while remaining:
            frame = await stream.read()
            if frame.WhichOneof("body") == "error":
                raise frames.error_from_wire(frame.error)
            if frame.WhichOneof("body") == "verdict":
                remaining -= 1
                session = sessions[frame.verdict.session]
                session.take(frame.verdict)
                await session.draft()
        return time.perf_counter() - started


async def echo_round_trips(num_rounds: int) -> float:
    """Seconds for as many round trips of frames of the same size through a gRPC stream that only echoes them."""

    async def echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server()
    methods = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        return await _time_echo(port, num_rounds)
    finally:
        await server.stop(None)
        del server


async def _time_echo(port: int, num_rounds: int) -> float:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = cast("Any", channel).stream_stream("/bench/Echo")()
        frame = b"x" * 64
        await stream.write(frame)
        await stream.read()
        started = time.perf_counter()
        for _ in range(num_rounds):
            await stream.write(frame)
            await stream.read()
        elapsed = time.perf_counter() - started
        stream.cancel()
        return elapsed


def run(coroutine: Any) -> float:
    """Run a measurement on an event loop of its own."""
    result: float = asyncio.run(coroutine)
    return result
