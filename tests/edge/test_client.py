"""The connection: how it is protected, what the ends tell each other, and how it comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.edge.endpoint import edge_config, server_config
from tests.fakes import FakeTarget, generate
from wisp.config import EdgeConfig, SecurityConfig
from wisp.edge.channel import check_security
from wisp.edge.client import FIRST_PAUSE, LONGEST_PAUSE, ServerConnection, connect
from wisp.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionLost,
    InvalidRequest,
    ProtocolError,
    VersionMismatch,
    VocabularyMismatch,
)
from wisp.protocol import wisp_pb2 as pb
from wisp.server.app import RunningServer, start_server
from wisp.server.certificates import private_certificate
from wisp.types import DecodeRequest, DraftedToken, DraftRequest, GenerationRequest, SamplingParams, StopRules

PROMPT = tuple(b"once upon a time")
REQUEST = GenerationRequest(PROMPT, len(PROMPT), SamplingParams(), StopRules(20))


@asynccontextmanager
async def serving(target: FakeTarget | None = None, **fields: Any) -> AsyncGenerator[RunningServer, None]:
    server = await start_server(target or FakeTarget(), server_config(**fields))
    try:
        yield server
    finally:
        await server.stop(0.0)


@asynccontextmanager
async def connection(config: EdgeConfig, **fields: Any) -> AsyncGenerator[ServerConnection, None]:
    given = ServerConnection(config, **fields)
    await given.start()
    try:
        yield given
    finally:
        await given.close()


def self_signed(name: str) -> tuple[bytes, bytes]:
    """A certificate that vouches for itself, and its key: PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), private


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "--ca-fingerprint"),
        ({"token": "t"}, "plain text"),
        ({"ca": Path("x"), "ca_fingerprint": "00"}, "not both"),
        ({"ca_fingerprint": "00"}, "64 digits"),
        ({"ca": Path("x"), "certificate": Path("x")}, "go together"),
        ({"insecure": True, "certificate": Path("x"), "private_key": Path("x")}, "needs TLS"),
    ],
)
def test_unprotected_connections_are_refused(fields: dict[str, Any], words: str) -> None:
    """Off loopback nothing is sent in the clear unless that is asked for."""
    with pytest.raises(ConfigError, match=words):
        check_security(EdgeConfig("verifier.example:7600", **fields))


@pytest.mark.parametrize("server", ["127.0.0.1:7600", "localhost:7600", "[::1]:7600"])
def test_loopback_needs_no_protection(server: str) -> None:
    """Nobody else listens there; elsewhere --insecure says that one knows."""
    check_security(EdgeConfig(server))
    check_security(EdgeConfig("verifier.example:7600", insecure=True))


async def test_a_pinned_server_with_a_token(tmp_path: Path) -> None:
    """TLS by fingerprint, or by its CA file, and the bearer token; a wrong one of either is refused."""
    async with serving(host="0.0.0.0", security=SecurityConfig(state_dir=tmp_path)) as server:
        certificate, token = server.protection.certificate, server.protection.own_token
        assert certificate is not None
        address = f"127.0.0.1:{server.port}"
        pinned = {"ca_fingerprint": certificate.ca_fingerprint}
        async with connection(edge_config(address, token=token, **pinned)) as given:
            assert given.hello.model_id == "fake-target"
            assert len(await given.fetch_tokenizer()) == given.hello.tokenizer_bytes
        for wrong in ({"token": "wrong", **pinned}, {"token": token, "ca_fingerprint": "0" * 64}, pinned):
            with pytest.raises(AuthenticationFailed):
                await ServerConnection(edge_config(address, **wrong)).start()


async def test_a_token_in_plain_text_on_loopback(tmp_path: Path) -> None:
    """Loopback may ask for a token too."""
    tokens = tmp_path / "tokens"
    tokens.write_text("secret me\n")
    async with serving(security=SecurityConfig(tokens_file=tokens)) as server:
        async with connection(edge_config(server.address, token="secret")) as given:
            assert len(await given.fetch_tokenizer()) == given.hello.tokenizer_bytes
        with pytest.raises(AuthenticationFailed, match="token"):
            await ServerConnection(edge_config(server.address)).start()


async def test_a_client_certificate(tmp_path: Path) -> None:
    """mTLS: the device shows its certificate; one that has none is not let in."""
    own = private_certificate(tmp_path / "server", ["127.0.0.1"])
    files = {name: tmp_path / name for name in ("chain.pem", "key.pem", "ca.pem", "device.pem", "device-key.pem")}
    device, device_key = self_signed("device")
    contents = (own.chain, own.private_key, own.chain[own.chain.rindex(b"-----BEGIN") :], device, device_key)
    for path, content in zip(files.values(), contents, strict=True):
        path.write_bytes(content)
    security = SecurityConfig(
        certificate=files["chain.pem"], private_key=files["key.pem"], client_ca=files["device.pem"]
    )
    async with serving(security=security) as server:
        trust = {"ca": files["ca.pem"], "connect_timeout": 1.0}
        with pytest.raises(ConnectionLost):
            await ServerConnection(edge_config(server.address, **trust)).start()
        shown = {"certificate": files["device.pem"], "private_key": files["device-key.pem"]}
        async with connection(edge_config(server.address, **trust, **shown)) as given:
            assert given.is_up


async def test_missing_files_are_named() -> None:
    """A CA file that is not there is the caller's to correct."""
    with pytest.raises(ConfigError, match=r"CA file .*nowhere\.pem"):
        await ServerConnection(edge_config("127.0.0.1:1", ca=Path("nowhere.pem"))).start()


async def test_files_that_tls_cannot_use_are_named(tmp_path: Path) -> None:
    """A CA that is none, and a key that is not the certificate's: the caller's to correct, not a server to wait for."""
    files = {name: tmp_path / name for name in ("ca.pem", "key.pem", "other-key.pem", "nonsense.pem")}
    certificate, key = self_signed("device")
    for path, content in zip(files.values(), (certificate, key, self_signed("other")[1], b"nonsense"), strict=True):
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"CA file .*nonsense\.pem holds no certificate"):
        await ServerConnection(edge_config("127.0.0.1:1", ca=files["nonsense.pem"])).start()
    for wrong in ("other-key.pem", "nonsense.pem"):
        shown = {"certificate": files["ca.pem"], "private_key": files[wrong]}
        with pytest.raises(ConfigError, match="not a certificate and its private key"):
            await ServerConnection(edge_config("127.0.0.1:1", ca=files["ca.pem"], **shown)).start()


async def test_nobody_there() -> None:
    """The message says where, for how long and why."""
    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:1 within 0\.2 s: .*Connection refused\. Is `wisp serve`"):
        await ServerConnection(edge_config("127.0.0.1:1", connect_timeout=0.2)).start()


async def test_pauses_grow_and_are_spread() -> None:
    """Each attempt waits twice as long as the one before, up to a limit, times a random factor of 0.5 to 1."""
    pauses: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            enough.set()
            await asyncio.Event().wait()

    given = ServerConnection(edge_config("127.0.0.1:1", connect_timeout=20.0), jitter=lambda: 0.0, sleep=sleep)
    starting = asyncio.create_task(given.start())
    await enough.wait()
    starting.cancel()
    await given.close()
    assert pauses[:3] == [FIRST_PAUSE * 0.5, FIRST_PAUSE, FIRST_PAUSE * 2]
    assert pauses[-1] == LONGEST_PAUSE * 0.5


async def test_the_drafters_vocabulary_is_shown_to_the_server() -> None:
    """A server that would not understand its drafts refuses the device."""
    async with serving() as server:
        given = ServerConnection(edge_config(server.address))
        given.vocabulary = "0" * 64
        with pytest.raises(VocabularyMismatch, match="0" * 64):
            await given.start()


def test_versions_are_compared() -> None:
    """Both ends' versions are named, and which one to update."""
    given = ServerConnection(edge_config("127.0.0.1:1"))
    with pytest.raises(VersionMismatch, match=r"version 99 .*wisp 9\.9"):
        given._welcome(pb.ServerHello(protocol_version=99, wisp_version="9.9"))


async def test_a_session_by_hand() -> None:
    """Open, plain tokens one by one, a draft and its verdict, and the end."""
    output = generate(REQUEST)
    async with serving() as server, connection(edge_config(server.address)) as given:
        session = given.session()
        session.open(REQUEST, 0)
        await session.opened()
        verdicts = [verdict async for verdict in session.ask(DecodeRequest(1, len(PROMPT), 3))]
        assert [verdict.next_token for verdict in verdicts] == output[:3]
        assert [verdict.final for verdict in verdicts] == [False, False, True]
        draft = tuple(DraftedToken(token) for token in (*output[3:5], 0))
        verdict = await anext(session.ask(DraftRequest(2, len(PROMPT) + 3, draft, (1.0,) * 3, 0.0, 0.0)))
        assert (verdict.num_accepted, verdict.next_token) == (2, output[5])
        session.close()
        assert not given._sessions


async def test_a_history_too_long_for_a_frame_is_refused() -> None:
    """It would break the whole stream."""
    async with serving() as server, connection(edge_config(server.address)) as given:
        session = given.session()
        given.hello.max_frame_bytes = 10
        with pytest.raises(InvalidRequest) as caught:
            session.open(REQUEST, 0)
        assert caught.value.field == "prompt"


async def test_more_verified_than_drafted_is_a_protocol_error() -> None:
    """A verdict must fit the draft it answers."""
    async with serving() as server, connection(edge_config(server.address)) as given:
        session = given.session()
        session.open(REQUEST, 0)
        await session.opened()
        verdicts = session.ask(DecodeRequest(1, len(PROMPT), 1))
        session._mail = asyncio.Queue()
        session.deliver(pb.Verdict(round=1, num_committed=len(PROMPT), num_verified=2, num_accepted=2, final=True))
        with pytest.raises(ProtocolError, match="of a draft of 0"):
            await anext(verdicts)


async def test_a_session_that_hears_nothing_does_not_cut_off_the_others() -> None:
    """The stream is dead only when nothing at all arrives on it; a session alone is opened again."""
    hold = threading.Event()
    target = FakeTarget(on_step=lambda members: hold.wait(20.0) and None)
    async with serving(target) as server, connection(edge_config(server.address, round_timeout=0.1)) as given:
        session = given.session()
        session.open(REQUEST, 0)
        await session.opened()
        verdicts = session.ask(DecodeRequest(1, len(PROMPT), 1))
        given._last_frame_at += 3600.0
        with pytest.raises(ConnectionLost, match="no verdict"):
            await anext(verdicts)
        given._last_frame_at -= 3600.0
        stream = given._stream
        assert stream is not None
        assert not stream._aborted.done()
        with pytest.raises(ConnectionLost, match="no verdict"):
            await anext(verdicts)
        assert stream._aborted.done()
        hold.set()


@pytest.mark.parametrize("padding", [True, False])
def test_frames_are_filled_up_only_where_lengths_are_all_that_shows(padding: bool) -> None:
    """Two prompts of unlike length leave in frames of one size, and say the same as before."""
    frames = [pb.DeviceFrame(open=pb.Open(session=1, tokens=[7] * length)) for length in (10, 40)]
    serialised: list[bytes] = []

    class Channel:
        def stream_stream(self, _path: str, request_serializer: Any, response_deserializer: Any) -> Any:
            serialised.extend(request_serializer(frame) for frame in frames)
            return lambda **_: None

    connect(Channel(), (), padding=padding)
    assert (len(serialised[0]) == len(serialised[1])) is padding
    assert [pb.DeviceFrame.FromString(data).open for data in serialised] == [frame.open for frame in frames]
