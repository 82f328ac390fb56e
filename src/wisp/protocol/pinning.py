"""How a device learns to trust a server's private CA from its fingerprint alone.

The server sends its CA at the end of its certificate chain. The device fetches that chain over a handshake that
verifies nothing, keeps the one certificate whose SHA-256 is the pin, and from then on verifies everything against it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import ssl
from typing import Any

from wisp.errors import AuthenticationFailed, ConfigError, ConnectionLost

_HEX = re.compile(r"[0-9a-f]{64}")


def normalised_fingerprint(text: str) -> str:
    """A SHA-256 fingerprint as 64 lower-case hex digits; colons, blanks and a `sha256:` are allowed. ConfigError."""
    plain = re.sub(r"^sha-?256:", "", text.strip().lower())
    plain = re.sub(r"[:\s]", "", plain)
    if not _HEX.fullmatch(plain):
        raise ConfigError(f"a CA fingerprint is a SHA-256 in hex, 64 digits, as `wisp serve` prints it; not {text!r}")
    return plain


def fetch_pinned_ca(host: str, port: int, fingerprint: str, timeout: float) -> bytes:
    """The server's CA certificate, PEM, if it is the pinned one and vouches for this server under this name.

    Blocks for up to twice `timeout` seconds. Raises AuthenticationFailed, ConnectionLost (nobody there) or ConfigError.
    """
    pin = normalised_fingerprint(fingerprint)
    chain = _fetch_chain(host, port, timeout)
    prints = [hashlib.sha256(der).hexdigest() for der in chain]
    found = next((der for der, own in zip(chain, prints, strict=True) if hmac.compare_digest(own, pin)), None)
    if found is None:
        raise AuthenticationFailed(
            f"{host}:{port} shows the CA {prints[-1]}, not the pinned {pin}: either its CA was made anew (take the "
            "fingerprint that `wisp serve` prints now) or somebody else answers in its place"
        )
    pem = ssl.DER_cert_to_PEM_cert(found)
    _verify(host, port, pem, timeout)
    return pem.encode()


def _fetch_chain(host: str, port: int, timeout: float) -> list[bytes]:
    """What the server shows, DER, verified by nobody yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _handshake(host, port, context, timeout) as connection:
        return _unverified_chain(connection)


def _verify(host: str, port: int, pem: str, timeout: float) -> None:
    """A second handshake, verified: so that a wrong name or an expired certificate is told here, in clear words."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the pin may be that of an intermediate
    try:
        _handshake(host, port, context, timeout).close()
    except ssl.SSLCertVerificationError as error:
        raise AuthenticationFailed(
            f"the certificate of {host}:{port} is of the pinned CA but does not hold: {error.verify_message}; "
            f"a server behind another name needs `wisp serve --server-name {host}`"
        ) from error


def _handshake(host: str, port: int, context: ssl.SSLContext, timeout: float) -> ssl.SSLSocket:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])  # gRPC servers refuse anything else
    try:
        plain = socket.create_connection((host, port), timeout)
    except OSError as error:
        raise ConnectionLost(f"cannot reach {host}:{port}: {error.strerror or error}") from error
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError:
        plain.close()
        raise
    except OSError as error:
        plain.close()
        raise AuthenticationFailed(
            f"{host}:{port} does not speak TLS ({error}): it may serve plain text; then leave the fingerprint out"
        ) from error


def _unverified_chain(connection: ssl.SSLSocket) -> list[bytes]:
    """The peer's chain as it was sent. Public since Python 3.13; the same call one level deeper since 3.10."""
    public = getattr(connection, "get_unverified_chain", None)
    if public is not None:
        return [bytes(der) for der in public()]
    inner: Any = getattr(connection, "_sslobj")  # noqa: B009 - private before 3.13
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in inner.get_unverified_chain() or ()]
