"""The target's tokenizer on this device: fetched once, kept by its hash."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from tokenizers import Tokenizer

from wisp.errors import FormatError, ProtocolError
from wisp.logs import logger

log = logger(__name__)

DEFAULT_CACHE = Path.home() / ".cache" / "wisp" / "tokenizers"


async def load_tokenizer(sha256: str, fetch: Callable[[], Awaitable[bytes]], cache: Path = DEFAULT_CACHE) -> Tokenizer:
    """The tokenizer with this hash, from the cache or else from the server. Raises ProtocolError and FormatError."""
    if len(sha256) != hashlib.sha256().digest_size * 2 or set(sha256) - set("0123456789abcdef"):
        raise ProtocolError(f"the server's tokenizer hash is not a SHA-256 in hex: {sha256!r}")
    path = cache / f"{sha256}.json"
    data = await asyncio.to_thread(_read, path, sha256)
    if data is None:
        data = await fetch()
        received = hashlib.sha256(data).hexdigest()
        if received != sha256:
            raise ProtocolError(f"the server announced a tokenizer with hash {sha256} and sent one with {received}")
        await asyncio.to_thread(_write, path, data)
    return parse(data)


def parse(data: bytes) -> Tokenizer:
    """A tokenizer.json as an object; raises FormatError."""
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:
        raise FormatError(f"the target's tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(path: Path, sha256: str) -> bytes | None:
    """The cached file, unless it is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


def _write(path: Path, data: bytes) -> None:
    """Write in one step: a reader sees the old file or the new one. A cache that cannot be written does no harm."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        log.warning("the tokenizer cannot be kept", folder=str(path.parent), error=str(error))
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
