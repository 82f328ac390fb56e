"""gRPC channels to the server: which credentials, and why plain text is for loopback only."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from wisp.config import EdgeConfig
from wisp.errors import ConfigError
from wisp.protocol import MAX_FRAME_BYTES, TOKEN_METADATA_KEY
from wisp.protocol.pinning import fetch_pinned_ca, normalised_fingerprint

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel must not wait out the back-off of the one before it
)


def check_security(config: EdgeConfig) -> None:
    """Refuse what would send prompts and tokens in the clear, and options that contradict. Raises ConfigError."""
    if config.ca is not None and config.ca_fingerprint is not None:
        raise ConfigError("give either a CA file or a CA fingerprint, not both")
    if (config.certificate is None) != (config.private_key is None):
        raise ConfigError("a client certificate and its private key go together: give both or neither")
    if config.certificate is not None and not uses_tls(config):
        raise ConfigError("a client certificate needs TLS: give --ca or --ca-fingerprint too")
    if config.ca_fingerprint is not None:
        normalised_fingerprint(config.ca_fingerprint)
    if not uses_tls(config) and not config.server_on_loopback and not config.insecure:
        raise ConfigError(
            f"{config.server} is not on this machine and nothing protects the connection: give --ca-fingerprint as "
            "`wisp serve` prints it, or --ca; --insecure sends prompts and credentials in plain text"
        )


def uses_tls(config: EdgeConfig) -> bool:
    """Whether the connection is encrypted."""
    return config.ca is not None or config.ca_fingerprint is not None


async def open_channel(config: EdgeConfig) -> Any:
    """A channel to the configured server; connects on first use. Raises ConfigError and AuthenticationFailed."""
    check_security(config)
    if not uses_tls(config):
        return grpc.aio.insecure_channel(config.server, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=await _trusted_ca(config),
        private_key=_read("private key", config.private_key),
        certificate_chain=_read("certificate", config.certificate),
    )
    _check_files(config)
    return grpc.aio.secure_channel(config.server, credentials, options=_OPTIONS)


def metadata(config: EdgeConfig) -> tuple[tuple[str, str], ...]:
    """What every call carries: the bearer token, if there is one."""
    return () if config.token is None else ((TOKEN_METADATA_KEY, f"Bearer {config.token}"),)


async def _trusted_ca(config: EdgeConfig) -> bytes | None:
    if config.ca_fingerprint is None:
        return _read("CA", config.ca)
    host, _, port = config.server.rpartition(":")
    return await asyncio.to_thread(
        fetch_pinned_ca, host.strip("[]"), int(port), config.ca_fingerprint, config.connect_timeout
    )


def _check_files(config: EdgeConfig) -> None:
    """Name the files that TLS cannot use: gRPC would only say, again and again, that a handshake failed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if config.ca is not None:
        try:
            context.load_verify_locations(config.ca)
        except ssl.SSLError as error:
            raise ConfigError(f"the CA file {config.ca} holds no certificate in PEM form") from error
    if config.certificate is not None and config.private_key is not None:
        try:
            context.load_cert_chain(config.certificate, config.private_key, password="")  # "": never ask for one
        except ssl.SSLError as error:
            raise ConfigError(
                f"{config.certificate} and {config.private_key} are not a certificate and its private key, unencrypted "
                f"and in PEM form: {error.reason or error}"
            ) from error


def _read(what: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the {what} file {path}: {error.strerror}") from error
