"""A device that speaks raw frames over a real socket, right or wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from tests.fakes import EMITTED, fingerprint, next_token
from wisp.config import ModelConfig, ServerConfig
from wisp.protocol import PROTOCOL_VERSION, TOKEN_METADATA_KEY, frames
from wisp.protocol import wisp_pb2 as pb
from wisp.types import (
    DecodeRequest,
    DraftedToken,
    DraftRequest,
    GenerationRequest,
    SamplingParams,
    StopRules,
    TokenId,
)

CONNECT = "/wisp.v1.Verifier/Connect"
END: Any = vars(grpc.aio)["EOF"]
PROMPT = tuple(b"once upon a time")


def generation(
    prompt: Sequence[TokenId] = PROMPT, max_tokens: int = 40, output: Sequence[TokenId] = (), **sampling: Any
) -> GenerationRequest:
    """A request to go on from a prompt, and from the output that is there already."""
    return GenerationRequest((*prompt, *output), len(prompt), SamplingParams(**sampling), StopRules(max_tokens))


def draft(number: int, history: Sequence[TokenId], num_right: int, num_wrong: int = 0, **fields: Any) -> DraftRequest:
    """A draft whose first `num_right` tokens are the fake target's own (greedy)."""
    tokens = list(history)
    for _ in range(num_right):
        tokens.append(next_token(tokens, SamplingParams()))
    for _ in range(num_wrong):
        right = next_token(tokens, SamplingParams())
        tokens.append(next(token for token in EMITTED if token != right))
    drafted = tuple(DraftedToken(token) for token in tokens[len(history) :])
    return DraftRequest(number, len(history), drafted, (0.5,) * len(drafted), 0.0, 0.0, **fields)


def decode(number: int, num_committed: int, num_tokens: int = 1) -> DecodeRequest:
    """A request for plain tokens."""
    return DecodeRequest(number, num_committed, num_tokens)


def hello_frame(**fields: Any) -> pb.DeviceFrame:
    """A device's first frame; `fields` replace its own."""
    values = {"protocol_version": PROTOCOL_VERSION, "wisp_version": "0", "vocabulary": fingerprint(), **fields}
    return pb.DeviceFrame(hello=pb.DeviceHello(**values))


@dataclass(slots=True)
class RawDevice:
    """One stream; `read` gives what comes next, whatever it is."""

    call: Any
    hello: pb.ServerHello = field(default_factory=pb.ServerHello)

    async def greet(self, **fields: Any) -> pb.ServerFrame:
        """Send the hello and read the answer."""
        await self.send(hello_frame(**fields))
        frame = await self.read()
        self.hello = frame.hello
        return frame

    async def send(self, frame: pb.DeviceFrame | bytes) -> None:
        await self.call.write(frame if isinstance(frame, bytes) else frame.SerializeToString())

    async def open(self, session: int, request: GenerationRequest, epoch: int = 1) -> None:
        await self.send(pb.DeviceFrame(open=frames.open_to_wire(session, epoch, request)))

    async def draft(self, session: int, request: DraftRequest, epoch: int = 1) -> None:
        await self.send(pb.DeviceFrame(draft=frames.draft_to_wire(session, epoch, request)))

    async def decode(self, session: int, request: DecodeRequest, epoch: int = 1) -> None:
        await self.send(pb.DeviceFrame(decode=frames.decode_to_wire(session, epoch, request)))

    async def cancel(self, session: int, number: int, epoch: int = 1) -> None:
        await self.send(pb.DeviceFrame(cancel=pb.Cancel(session=session, epoch=epoch, round=number)))

    async def close(self, session: int, epoch: int = 1) -> None:
        await self.send(pb.DeviceFrame(close=pb.Close(session=session, epoch=epoch)))

    async def read_bytes(self) -> bytes:
        async with asyncio.timeout(10):
            data = await self.call.read()
        assert data is not END, "the server ended the stream"
        return bytes(data)

    async def read(self) -> pb.ServerFrame:
        return pb.ServerFrame.FromString(await self.read_bytes())

    async def opened(self) -> pb.Opened:
        frame = await self.read()
        assert frame.WhichOneof("body") == "opened", frame
        return frame.opened

    async def verdict(self) -> pb.Verdict:
        frame = await self.read()
        assert frame.WhichOneof("body") == "verdict", frame
        return frame.verdict

    async def error(self) -> pb.Error:
        frame = await self.read()
        assert frame.WhichOneof("body") == "error", frame
        return frame.error

    async def ended(self) -> grpc.StatusCode:
        """Leave, and read to the end of the stream; returns its status."""
        await self.call.done_writing()
        async with asyncio.timeout(10):
            while await self.call.read() is not END:
                pass
            code: grpc.StatusCode = await self.call.code()
        return code


@asynccontextmanager
async def connected(
    address: str, *, greet: bool = True, token: str | None = None, credentials: Any = None, **hello: Any
) -> AsyncIterator[RawDevice]:
    """A device with a stream to the server at `address`."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.bdp_probe", 0),  # a device that does not read must not take in megabytes all the same
    ]
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    async with channel:
        metadata = () if token is None else ((TOKEN_METADATA_KEY, f"Bearer {token}"),)
        call = channel.stream_stream(CONNECT)(metadata=metadata)
        device = RawDevice(call)
        try:
            if greet:
                await device.greet(**hello)
            yield device
        finally:
            call.cancel()


def config(**fields: Any) -> ServerConfig:
    """A server on a free port of loopback."""
    return ServerConfig(target=ModelConfig("fake"), port=0, drain_timeout=5.0, **fields)
