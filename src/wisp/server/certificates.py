"""The private certificate authority that the first start off loopback makes, and the certificates it signs.

Three files in the state directory, each readable by its owner only: `ca.pem` (key and certificate), `server.pem` (key
and chain), and beside them `ca-certificate.pem`, the public part for devices that get it as a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wisp.errors import ConfigError

CA_LIFETIME = timedelta(days=3650)
CERTIFICATE_LIFETIME = timedelta(days=397)
RENEW_BEFORE = timedelta(days=30)
WILDCARD_HOSTS = frozenset({"", "0.0.0.0", "::", "[::]", "*"})  # noqa: S104 - recognised, not listened on


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What a TLS server shows: its key, and its chain up to and including the CA; both PEM."""

    private_key: bytes
    chain: bytes

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the last certificate of the chain, hex: what devices pin."""
        last = x509.load_pem_x509_certificates(self.chain)[-1]
        return hashlib.sha256(last.public_bytes(serialization.Encoding.DER)).hexdigest()


def load_certificate(certificate: Path, private_key: Path) -> ServerCertificate:
    """The operator's own certificate chain and key. Raises ConfigError."""
    try:
        key_pem, chain_pem = private_key.read_bytes(), certificate.read_bytes()
        key = serialization.load_pem_private_key(key_pem, password=None)
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot use certificate {certificate} with key {private_key}: {error}") from error
    if _public_bytes(key.public_key()) != _public_bytes(leaf.public_key()):
        raise ConfigError(f"{private_key} is not the key of the first certificate in {certificate}")
    return ServerCertificate(key_pem, chain_pem)


def load_client_ca(path: Path) -> bytes:
    """The certificates, PEM, of those who may vouch for devices. Raises ConfigError."""
    try:
        pem = path.read_bytes()
        x509.load_pem_x509_certificates(pem)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use client CA {path}: {error}") from error
    return pem


def private_certificate(state_dir: Path, hosts: Iterable[str], now: datetime | None = None) -> ServerCertificate:
    """A certificate for `hosts` of the state directory's own CA; made, and made anew, where needed."""
    now = now or datetime.now(UTC)
    wanted = {_general_name(host) for host in hosts}
    ca_key, ca = _authority(state_dir, now)
    path = state_dir / "server.pem"
    with contextlib.suppress(OSError, ValueError, InvalidSignature):
        pem = path.read_bytes()
        leaf = x509.load_pem_x509_certificates(pem)[0]
        leaf.verify_directly_issued_by(ca)
        if wanted <= _names(leaf) and leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc - RENEW_BEFORE:
            return _split(pem)
    pem = _issue(ca_key, ca, sorted(wanted, key=repr), now)
    write_private(path, pem)
    return _split(pem)


def certificate_hosts(host: str, further: Iterable[str] = ()) -> tuple[str, ...]:
    """The names and addresses that a server listening on `host` is reached by, as far as this machine knows."""
    names = [*further]
    if host in WILDCARD_HOSTS:
        names += [*own_addresses(), socket.gethostname()]
    else:
        names.append(host)
    return tuple(dict.fromkeys([*names, "localhost", "127.0.0.1", "::1"]))


def own_addresses() -> list[str]:
    """This machine's addresses, the one that reaches other networks first."""
    addresses = []
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # names a route; nothing is sent
            addresses.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        addresses += [str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(socket.gethostname(), None)]
    return list(dict.fromkeys(addresses))


def write_private(path: Path, data: bytes, *, keep_existing: bool = False) -> None:
    """Write a file that only its owner can read, whole or not at all. Raises ConfigError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        if keep_existing:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        else:
            temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}; choose another place with --state-dir") from error


def _authority(state_dir: Path, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    path = state_dir / "ca.pem"
    if not path.exists():
        write_private(path, _new_authority(now), keep_existing=True)
    try:
        pem = path.read_bytes()
        key = serialization.load_pem_private_key(_split(pem).private_key, password=None)
        certificate = x509.load_pem_x509_certificate(_split(pem).chain)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no CA key and certificate ({error}): remove it to make a new CA") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds a key of another kind than WISP makes: remove it to make a new CA")
    if now > certificate.not_valid_after_utc - CERTIFICATE_LIFETIME:
        raise ConfigError(f"the CA in {path} is about to expire: remove it to make a new one, and pin that one")
    write_private(state_dir / "ca-certificate.pem", _split(pem).chain)
    return key, certificate


def _new_authority(now: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"WISP private CA {secrets.token_hex(4)}")])
    certificate = (
        _builder(name, name, key, now, CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _issue(
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, names: Iterable[x509.GeneralName], now: datetime
) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "WISP server")])
    certificate = (
        _builder(name, ca.subject, key, now, CERTIFICATE_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return _key_pem(key) + certificate.public_bytes(pem) + ca.public_bytes(pem)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # for devices whose clock is slow
        .not_valid_after(now + lifetime)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _split(pem: bytes) -> ServerCertificate:
    """Key first, certificates after it."""
    start = pem.index(b"-----BEGIN CERTIFICATE-----")
    return ServerCertificate(pem[:start], pem[start:])


def _names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)
