"""Who may connect, and how the wire is protected: decided once at start-up from the configuration.

On loopback plain text is fine. Elsewhere the server has TLS and asks for a token; both are made on the first start.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from wisp.config import SecurityConfig, ServerConfig
from wisp.errors import AuthenticationFailed, ConfigError
from wisp.logs import logger
from wisp.protocol import TOKEN_METADATA_KEY
from wisp.server.certificates import (
    WILDCARD_HOSTS,
    ServerCertificate,
    certificate_hosts,
    load_certificate,
    load_client_ca,
    own_addresses,
    private_certificate,
    write_private,
)

log = logger(__name__)
TOKENS_VARIABLE = "WISP_TOKENS"
LOCAL_OWNER = "local"
_BEARER = "bearer "
_TOKEN = re.compile(r"[!-~]+")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Credential:
    """A token, kept as its digest, and the name that stands for it everywhere else."""

    digest: bytes
    name: str


class TokenFile:
    """Tokens of a file that may change while the server runs: it is read again when its time stamp moves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._read_stamp()
        self._credentials = read_tokens(path)

    def credentials(self) -> tuple[Credential, ...]:
        """What the file holds now; what it held before, where it cannot be used any more."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._credentials = read_tokens(self._path)
                log.info("tokens read again", file=str(self._path), tokens=len(self._credentials))
            except ConfigError as error:
                log.warning("tokens left as they were", reason=str(error))
        return self._credentials

    def _read_stamp(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0


@dataclass(frozen=True, slots=True)
class FixedTokens:
    """Tokens that stay as they are while the server runs."""

    tokens: tuple[Credential, ...]

    def credentials(self) -> tuple[Credential, ...]:
        return self.tokens


@dataclass(frozen=True, slots=True)
class Credentials:
    """Tells who a device is from what it shows."""

    tokens: TokenFile | FixedTokens | None = None
    """None: no token is asked for."""
    certificates: bool = False
    """Whether devices have to show one (checked by TLS)."""

    def owner(self, metadata: Iterable[tuple[str, str | bytes]], auth_context: Mapping[str, Sequence[bytes]]) -> str:
        """The name of the credential. Raises AuthenticationFailed."""
        if self.tokens is not None:
            return self._owner_of_token(metadata, self.tokens.credentials())
        return _owner_of_certificate(auth_context) if self.certificates else LOCAL_OWNER

    def _owner_of_token(self, metadata: Iterable[tuple[str, str | bytes]], known: Sequence[Credential]) -> str:
        given = next((value for key, value in metadata if key.lower() == TOKEN_METADATA_KEY), None)
        if not isinstance(given, str) or not given.lower().startswith(_BEARER):
            raise AuthenticationFailed(
                "this server asks for a token: pass it with `wisp edge --token` or in WISP_TOKEN"
            )
        digest = _digest(given[len(_BEARER) :].strip())
        names = [credential.name for credential in known if hmac.compare_digest(credential.digest, digest)]
        if not names:
            raise AuthenticationFailed(
                "the token is not one of this server's: it may have been replaced; ask for its new one"
            )
        return names[0]


@dataclass(frozen=True, slots=True)
class Protection:
    """What the server was told, or decided, about security."""

    credentials: Credentials
    certificate: ServerCertificate | None = None
    """None: plain text."""
    client_ca: bytes | None = None
    own_token: str | None = field(default=None, repr=False)
    """The token that the state directory holds, where it is the one in use."""
    own_token_is_new: bool = False
    private_ca: bool = False
    """Whether the certificate is of the state directory's CA: devices have to pin it."""

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        """For the server's port; None: plain text."""
        if self.certificate is None:
            return None
        return grpc.ssl_server_credentials(
            [(self.certificate.private_key, self.certificate.chain)],
            root_certificates=self.client_ca,
            require_client_auth=self.client_ca is not None,
        )


def protect(config: ServerConfig, environment: Mapping[str, str] = os.environ) -> Protection:
    """Decide how the wire is protected; makes what is missing in the state directory. Raises ConfigError."""
    security = config.security
    own_certificate = security.certificate is not None
    needs_tls = own_certificate or security.client_ca is not None or not (config.on_loopback or security.insecure)
    if security.insecure and needs_tls:
        raise ConfigError("--insecure means plain text: leave it out, or leave out the certificate and the client CA")
    tokens, own_token, is_new = _tokens(config, environment)
    credentials = Credentials(tokens, certificates=security.client_ca is not None)
    if not needs_tls:
        return Protection(credentials, own_token=own_token, own_token_is_new=is_new)
    return Protection(
        credentials=credentials,
        certificate=_certificate(security, config.host),
        client_ca=None if security.client_ca is None else load_client_ca(security.client_ca),
        own_token=own_token,
        own_token_is_new=is_new,
        private_ca=not own_certificate,
    )


def edge_command(config: ServerConfig, protection: Protection, port: int) -> str:
    """The line that connects a device; the token itself is in it only when it was just made."""
    words = ["wisp edge --server", reachable(config, port)]
    if protection.certificate is not None and protection.private_ca:
        words += ["--ca-fingerprint", protection.certificate.ca_fingerprint]
    if protection.client_ca is not None:
        words += ["--certificate CERTIFICATE.pem --private-key KEY.pem"]
    if protection.own_token is not None and protection.own_token_is_new:
        words += ["--token", protection.own_token]
    elif protection.credentials.tokens is not None:
        words += ["--token TOKEN"]
    if protection.certificate is None and not config.on_loopback:
        words += ["--insecure"]
    return " ".join(words)


def reachable(config: ServerConfig, port: int) -> str:
    """HOST:PORT that other machines connect to, as far as this one knows."""
    host = config.host
    if host in WILDCARD_HOSTS:
        host = next(iter([*config.security.server_names, *own_addresses(), "HOST"]))
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def parse_tokens(text: str, source: str) -> tuple[Credential, ...]:
    """One `token [name]` a line, `#` starts a comment. Raises ConfigError."""
    credentials = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        token, name = words[0], words[1] if len(words) > 1 else _default_name(words[0])
        if len(words) > 2 or not _TOKEN.fullmatch(token) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{source}, line {number}: expected `token [name]`, the token of printable ASCII characters, "
                "the name of at most 64 letters, digits, dots, dashes and underscores"
            )
        credentials.append(Credential(_digest(token), name))
    if not credentials:
        raise ConfigError(f"{source} holds no token: give at least one `token [name]` line")
    return tuple(credentials)


def read_tokens(path: Path) -> tuple[Credential, ...]:
    """The credentials of a tokens file. Raises ConfigError."""
    return parse_tokens(_read(path, "the tokens file").decode(errors="replace"), str(path))


def _tokens(
    config: ServerConfig, environment: Mapping[str, str]
) -> tuple[TokenFile | FixedTokens | None, str | None, bool]:
    """Where tokens come from; with the state directory's own one, and whether it was just made."""
    security = config.security
    if security.tokens_file is not None:
        return TokenFile(security.tokens_file), None, False
    if environment.get(TOKENS_VARIABLE, "").strip():
        return FixedTokens(parse_tokens(environment[TOKENS_VARIABLE].replace(",", "\n"), TOKENS_VARIABLE)), None, False
    if config.on_loopback or security.insecure or security.client_ca is not None:
        return None, None, False
    path = security.state_dir / "token"
    is_new = not path.exists()
    if is_new:
        write_private(path, f"{secrets.token_urlsafe(32)} default\n".encode(), keep_existing=True)
    return TokenFile(path), _read(path, "the token").decode().split()[0], is_new


def _certificate(security: SecurityConfig, host: str) -> ServerCertificate:
    if security.certificate is not None and security.private_key is not None:
        return load_certificate(security.certificate, security.private_key)
    return private_certificate(security.state_dir, certificate_hosts(host, security.server_names))


def _owner_of_certificate(auth_context: Mapping[str, Sequence[bytes]]) -> str:
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        if auth_context.get(key):
            return "certificate:" + auth_context[key][0].decode(errors="replace")
    raise AuthenticationFailed("this server asks for a client certificate with a common name or an alternative name")


def _default_name(token: str) -> str:
    return f"token-{_digest(token).hex()[:8]}"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
