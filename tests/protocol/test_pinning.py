"""Trusting a private CA by its fingerprint, against a real TLS server."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import FakeTarget
from tests.server.device import config
from wisp.config import SecurityConfig
from wisp.errors import AuthenticationFailed, ConfigError, ConnectionLost
from wisp.protocol.pinning import fetch_pinned_ca, normalised_fingerprint
from wisp.server.app import RunningServer, start_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    settings = replace(config(security=SecurityConfig(state_dir=tmp_path)), host="0.0.0.0")
    running = await start_server(FakeTarget(), settings)
    yield running
    await running.stop(0.0)


def _pin(server: RunningServer) -> str:
    assert server.protection.certificate is not None
    return server.protection.certificate.ca_fingerprint


async def _fetch(host: str, port: int, fingerprint: str) -> bytes:
    return await asyncio.to_thread(fetch_pinned_ca, host, port, fingerprint, 5.0)


async def test_the_pinned_ca_is_fetched(server: RunningServer, tmp_path: Path) -> None:
    """The PEM is the server's CA, byte for byte what its state directory holds."""
    pem = await _fetch("127.0.0.1", server.port, _pin(server).upper())
    assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest() == _pin(server)
    assert pem.split() == (tmp_path / "ca-certificate.pem").read_bytes().split()


async def test_another_pin_is_refused_and_both_are_named(server: RunningServer) -> None:
    """The message holds what was shown and what was expected."""
    with pytest.raises(AuthenticationFailed, match=f"{_pin(server)}.*{'0' * 64}"):
        await _fetch("127.0.0.1", server.port, "0" * 64)


async def test_a_name_outside_the_certificate_is_refused(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pinned CA alone does not make a certificate of it valid everywhere."""
    import socket

    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: real(("127.0.0.1", address[1]), timeout))
    with pytest.raises(AuthenticationFailed, match=r"--server-name elsewhere\.example"):
        await _fetch("elsewhere.example", server.port, _pin(server))


async def test_a_server_without_tls_is_named_as_such() -> None:
    """Plain text behind a pin: the device must not go on."""
    running = await start_server(FakeTarget(), config())
    with pytest.raises(AuthenticationFailed, match="does not speak TLS"):
        await _fetch("127.0.0.1", running.port, "0" * 64)
    await running.stop(0.0)


async def test_nobody_there_is_a_lost_connection() -> None:
    """So that the device tries again."""
    with pytest.raises(ConnectionLost, match="cannot reach"):
        await _fetch("127.0.0.1", 1, "0" * 64)


def test_fingerprints_are_taken_as_tools_print_them() -> None:
    """Colons, case and a prefix do not matter; anything else does."""
    plain = "ab" * 32
    assert normalised_fingerprint("SHA256:" + ":".join(["AB"] * 32)) == plain
    for wrong in ("", "ab" * 31, "g" * 64):
        with pytest.raises(ConfigError, match="64 digits"):
            normalised_fingerprint(wrong)
