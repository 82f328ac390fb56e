"""How the wire is protected: what is decided, what is made, who is let in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.fakes import FakeTarget
from tests.server.device import PROMPT, config, connected, decode, generation
from wisp.config import SecurityConfig, ServerConfig
from wisp.errors import AuthenticationFailed, ConfigError
from wisp.protocol.pinning import fetch_pinned_ca
from wisp.server.app import RunningServer, start_server
from wisp.server.certificates import certificate_hosts, load_certificate, own_addresses, private_certificate
from wisp.server.security import (
    LOCAL_OWNER,
    Credentials,
    FixedTokens,
    Protection,
    edge_command,
    parse_tokens,
    protect,
    read_tokens,
)

EVERYWHERE = "0.0.0.0"


def settings(tmp_path: Path, host: str = EVERYWHERE, **security: Any) -> ServerConfig:
    """A server that listens on `host`, its state in a folder of the test."""
    return replace(config(security=SecurityConfig(state_dir=tmp_path / "state", **security)), host=host)


@asynccontextmanager
async def serving(given: ServerConfig) -> AsyncIterator[RunningServer]:
    """A server on a fake target."""
    running = await start_server(FakeTarget(), given)
    try:
        yield running
    finally:
        await running.stop(0.0)


async def trusting(server: RunningServer, **client: bytes) -> grpc.ChannelCredentials:
    """Channel credentials of a device that pinned the server's CA."""
    assert server.protection.certificate is not None
    pin = server.protection.certificate.ca_fingerprint
    pem = await asyncio.to_thread(fetch_pinned_ca, "127.0.0.1", server.port, pin, 5.0)
    return grpc.ssl_channel_credentials(pem, **client)


# What is decided


def test_on_loopback_plain_text_without_a_token_is_fine(tmp_path: Path) -> None:
    """And nothing is written."""
    for host in ("127.0.0.1", "::1", "localhost"):
        protection = protect(settings(tmp_path, host), {})
        assert protection == Protection(Credentials())
        assert protection.grpc_credentials() is None
    assert not (tmp_path / "state").exists()
    assert edge_command(settings(tmp_path, "127.0.0.1"), protection, 7600) == "wisp edge --server 127.0.0.1:7600"
    assert edge_command(settings(tmp_path, "::1"), protection, 7600) == "wisp edge --server [::1]:7600"


def test_the_first_start_off_loopback_makes_ca_certificate_and_token(tmp_path: Path) -> None:
    """Readable by their owner only; the second start finds them and shows the token no more."""
    given = settings(tmp_path)
    first = protect(given, {})
    state = tmp_path / "state"
    assert {path.name for path in state.iterdir()} == {"ca.pem", "ca-certificate.pem", "server.pem", "token"}
    assert state.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in state.iterdir())
    assert first.certificate is not None
    assert first.own_token is not None
    assert len(first.own_token) >= 32
    command = edge_command(given, first, 7600)
    assert f"--ca-fingerprint {first.certificate.ca_fingerprint} --token {first.own_token}" in command
    second = protect(given, {})
    assert second.certificate == first.certificate
    assert second.own_token == first.own_token
    assert first.own_token not in edge_command(given, second, 7600)
    assert edge_command(given, second, 7600).endswith("--token TOKEN")
    assert first.own_token not in repr(first)


def test_tokens_on_loopback_are_honoured_where_they_are_configured(tmp_path: Path) -> None:
    """By file, or by the environment; the file comes first."""
    path = tmp_path / "tokens"
    path.write_text("# our devices\nsecret-1 kitchen # the old one\n\nsecret-2\n")
    by_file = protect(settings(tmp_path, "127.0.0.1", tokens_file=path), {"WISP_TOKENS": "other"})
    assert _owner(by_file.credentials, "secret-1") == "kitchen"
    assert _owner(by_file.credentials, "secret-2").startswith("token-")
    with pytest.raises(AuthenticationFailed):
        _owner(by_file.credentials, "other")
    by_environment = protect(settings(tmp_path, "127.0.0.1"), {"WISP_TOKENS": "secret-1 kitchen, secret-2 hall"})
    assert _owner(by_environment.credentials, "secret-2") == "hall"
    assert edge_command(settings(tmp_path, "127.0.0.1"), by_environment, 1).endswith("--token TOKEN")


def test_insecure_means_plain_text_off_loopback(tmp_path: Path) -> None:
    """Tokens count if there are any; with a certificate it contradicts itself."""
    given = settings(tmp_path, insecure=True)
    protection = protect(given, {})
    assert protection == Protection(Credentials())
    assert edge_command(given, protection, 7600).endswith("--insecure")
    assert protect(given, {"WISP_TOKENS": "secret"}).credentials.tokens is not None
    with pytest.raises(ConfigError, match="plain text"):
        protect(settings(tmp_path, insecure=True, client_ca=tmp_path / "ca.pem"), {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no token"),
        ("# nothing\n", "holds no token"),
        ("one two three", "line 1: expected"),
        ("secret na/me", "line 1: expected"),
        ("ok name\ns\u00e9cret", "line 2: expected"),
        ("secret " + "n" * 65, "line 1: expected"),
    ],
)
def test_a_tokens_file_that_cannot_be_right_is_refused(text: str, complaint: str) -> None:
    """With the line, never with the token."""
    with pytest.raises(ConfigError, match=complaint) as refusal:
        parse_tokens(text, "tokens")
    assert "secret" not in str(refusal.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Tokens, client CA, certificate and key."""
    with pytest.raises(ConfigError, match=r"tokens file .*nowhere"):
        read_tokens(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"client CA .*nowhere"):
        protect(settings(tmp_path, client_ca=tmp_path / "nowhere"), {})
    (tmp_path / "nonsense").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"client CA .*nonsense"):
        protect(settings(tmp_path, client_ca=tmp_path / "nonsense"), {})
    with pytest.raises(ConfigError, match="cannot use certificate"):
        load_certificate(tmp_path / "nowhere", tmp_path / "nowhere")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        protect(replace(settings(tmp_path), security=SecurityConfig(state_dir=blocked / "below")), {})


# Tokens


def _owner(credentials: Credentials, token: str | None, scheme: str = "Bearer ") -> str:
    metadata = [("user-agent", "x"), *([] if token is None else [("authorization", scheme + token)])]
    return credentials.owner(metadata, {})


def test_an_owner_is_the_name_of_its_credential() -> None:
    """Two tokens of one name are one owner, which is how a token is replaced without a gap."""
    credentials = Credentials(FixedTokens(parse_tokens("old kitchen\nnew kitchen\nother hall", "tokens")))
    assert [_owner(credentials, token) for token in ("old", "new", "other")] == ["kitchen", "kitchen", "hall"]
    assert _owner(credentials, " new", "bearer ") == "kitchen"
    assert Credentials().owner([], {}) == LOCAL_OWNER


@pytest.mark.parametrize(
    ("token", "scheme", "complaint"),
    [
        (None, "", "asks for a token"),
        ("old", "Basic ", "asks for a token"),
        ("older", "Bearer ", "may have been replaced"),
    ],
)
def test_no_token_and_a_wrong_token_are_told_apart(token: str | None, scheme: str, complaint: str) -> None:
    """Neither text repeats what was sent."""
    credentials = Credentials(FixedTokens(parse_tokens("old kitchen", "tokens")))
    with pytest.raises(AuthenticationFailed, match=complaint) as refusal:
        _owner(credentials, token, scheme)
    assert "older" not in str(refusal.value)


def test_a_tokens_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """One that became unusable changes nothing."""
    path = tmp_path / "tokens"
    path.write_text("first kitchen")
    credentials = protect(settings(tmp_path, "127.0.0.1", tokens_file=path), {}).credentials
    for number, (text, valid) in enumerate([("second kitchen", "second"), ("", "second"), ("third hall", "third")]):
        path.write_text(text)
        os.utime(path, ns=(number, number))
        assert _owner(credentials, valid) in {"kitchen", "hall"}
        with pytest.raises(AuthenticationFailed):
            _owner(credentials, "first")
    path.unlink()
    assert _owner(credentials, "third") == "hall"


# Certificates


def _leaf(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


def _names(chain: bytes) -> set[str]:
    names = _leaf(chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def test_a_certificate_names_what_the_server_is_reached_by(tmp_path: Path) -> None:
    """Given names, all own addresses for a wildcard, and loopback always."""
    hosts = certificate_hosts(EVERYWHERE, ["wisp.example", "203.0.113.7"])
    assert hosts[:2] == ("wisp.example", "203.0.113.7")
    assert set(own_addresses()) <= set(hosts)
    assert certificate_hosts("10.1.2.3") == ("10.1.2.3", "localhost", "127.0.0.1", "::1")
    certificate = private_certificate(tmp_path, hosts)
    assert {"wisp.example", "203.0.113.7", "localhost", "127.0.0.1", "::1"} <= _names(certificate.chain)


def test_a_certificate_is_made_anew_for_new_hosts_and_before_it_expires(tmp_path: Path) -> None:
    """Always of the same CA, so that pins stay good."""
    now = datetime.now(UTC)
    first = private_certificate(tmp_path, ["a.example", "b.example"], now)
    assert private_certificate(tmp_path, ["a.example"], now) == first
    second = private_certificate(tmp_path, ["c.example"], now)
    assert _names(second.chain) == {"c.example"}
    third = private_certificate(tmp_path, ["c.example"], now + timedelta(days=380))
    assert third.chain != second.chain
    assert _leaf(third.chain).not_valid_after_utc > now + timedelta(days=700)
    assert first.ca_fingerprint == second.ca_fingerprint == third.ca_fingerprint
    (tmp_path / "server.pem").write_text("garbage")
    assert private_certificate(tmp_path, ["c.example"], now).ca_fingerprint == first.ca_fingerprint
    with pytest.raises(ConfigError, match="about to expire"):
        private_certificate(tmp_path, ["c.example"], now + timedelta(days=3400))


def test_a_ca_file_that_is_none_is_not_overwritten(tmp_path: Path) -> None:
    """A new CA would break every pin: the operator has to decide that."""
    (tmp_path / "ca.pem").write_text("garbage")
    with pytest.raises(ConfigError, match="remove it"):
        private_certificate(tmp_path, ["a.example"])
    assert (tmp_path / "ca.pem").read_text() == "garbage"


def _authority(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Somebody's own CA, with one certificate for 127.0.0.1 that serves for both ends; and its key."""
    now = datetime.now(UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "camera 7")])

    def sign(subject: x509.Name, public: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca = sign(ca_name, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    leaf = sign(name, key.public_key(), address)
    paths = (tmp_path / "own-ca.pem", tmp_path / "own.pem", tmp_path / "own-key.pem")
    paths[0].write_bytes(ca)
    paths[1].write_bytes(leaf + ca)
    paths[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """Before the server starts, and by name."""
    _, certificate, _ = _authority(tmp_path)
    (tmp_path / "other").mkdir()
    other_key = _authority(tmp_path / "other")[2]
    with pytest.raises(ConfigError, match="is not the key of"):
        load_certificate(certificate, other_key)


# On the wire


async def test_a_device_with_pin_and_token_is_served(tmp_path: Path) -> None:
    """Over TLS, verified against the CA that was fetched."""
    async with serving(settings(tmp_path)) as server:
        credentials = await trusting(server)
        address, token = f"127.0.0.1:{server.port}", server.protection.own_token
        async with connected(address, token=token, credentials=credentials) as device:
            await device.open(1, generation())
            await device.opened()
            await device.decode(1, decode(1, len(PROMPT), 3))
            assert {len(await device.read_bytes()) for _ in range(3)} == {64}


async def test_another_ca_is_not_trusted(tmp_path: Path) -> None:
    """A device that trusts somebody else's CA does not get as far as its token."""
    ca, _, _ = _authority(tmp_path)
    async with serving(settings(tmp_path)) as server:
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            async with connected(f"127.0.0.1:{server.port}", token="t", credentials=credentials):
                pass
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_without_the_right_token_every_method_is_unauthenticated(tmp_path: Path, token: str | None) -> None:
    """With a text that says what to do; health needs none."""
    async with serving(settings(tmp_path)) as server:
        credentials, address = await trusting(server), f"127.0.0.1:{server.port}"
        with pytest.raises(grpc.aio.AioRpcError, match="token") as refusal:
            async with connected(address, token=token, credentials=credentials):
                pass
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
        async with grpc.aio.secure_channel(address, credentials) as channel:
            call = channel.unary_stream("/wisp.v1.Verifier/FetchTokenizer")(b"")
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                [data async for data in call]
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"


async def test_plain_text_does_not_reach_a_tls_port(tmp_path: Path) -> None:
    """The connection fails."""
    async with serving(settings(tmp_path)) as server:
        with pytest.raises(grpc.aio.AioRpcError):
            async with connected(f"127.0.0.1:{server.port}"):
                pass


async def test_mutual_tls_names_a_device_by_its_certificate(tmp_path: Path) -> None:
    """No token is asked for; a device without a certificate is not let in, though it may fetch and check the pin."""
    ca, certificate, key = _authority(tmp_path)
    async with serving(settings(tmp_path, client_ca=ca)) as server:
        address = f"127.0.0.1:{server.port}"
        credentials = await trusting(server, private_key=key.read_bytes(), certificate_chain=certificate.read_bytes())
        async with connected(address, credentials=credentials) as device:
            await device.open(1, generation())
            await device.opened()
            assert list(server.registry._sessions) == [("certificate:camera 7", 1)]
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            async with connected(address, credentials=await trusting(server)):
                pass
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "--certificate CERTIFICATE.pem" in edge_command(server._config, server.protection, server.port)


async def test_the_operators_own_certificate_is_served(tmp_path: Path) -> None:
    """On loopback too; devices trust it as they always did, or pin its CA."""
    ca, certificate, key = _authority(tmp_path)
    given = settings(tmp_path, "127.0.0.1", certificate=certificate, private_key=key)
    async with serving(given) as server:
        async with connected(server.address, credentials=grpc.ssl_channel_credentials(ca.read_bytes())) as device:
            assert device.hello.model_id == "fake-target"
        async with connected(server.address, credentials=await trusting(server)) as device:
            assert device.hello.model_id == "fake-target"
        assert "--ca-fingerprint" not in edge_command(given, server.protection, server.port)


async def test_any_certificate_of_the_chain_can_be_pinned(tmp_path: Path) -> None:
    """The server's own one too: it then trusts that one only."""
    _, certificate, key = _authority(tmp_path)
    pin = _leaf(certificate.read_bytes()).fingerprint(hashes.SHA256()).hex()
    async with serving(settings(tmp_path, "127.0.0.1", certificate=certificate, private_key=key)) as server:
        pem = await asyncio.to_thread(fetch_pinned_ca, "127.0.0.1", server.port, pin, 5.0)
        async with connected(server.address, credentials=grpc.ssl_channel_credentials(pem)) as device:
            assert device.hello.model_id == "fake-target"


async def test_owners_on_the_wire_do_not_meet(tmp_path: Path) -> None:
    """The same session id under two tokens is two sessions."""
    path = tmp_path / "tokens"
    path.write_text("token-a anna\ntoken-b bob\n")
    async with (
        serving(settings(tmp_path, "127.0.0.1", tokens_file=path)) as server,
        connected(server.address, token="token-a") as anna,
        connected(server.address, token="token-b") as bob,
    ):
        for device in (anna, bob):
            await device.open(1, generation())
            assert (await device.opened()).num_cached_tokens == 0
        assert set(server.registry._sessions) == {("anna", 1), ("bob", 1)}
