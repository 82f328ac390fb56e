"""The tokenizer's cache: fetched once, trusted by its hash only."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.fakes import tokenizer_json
from wisp.edge.tokenizer import load_tokenizer, parse
from wisp.errors import FormatError, ProtocolError

DATA = tokenizer_json()
SHA256 = hashlib.sha256(DATA).hexdigest()


class Fetch:
    """Gives the bytes it was made with, and counts."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.count = 0

    async def __call__(self) -> bytes:
        self.count += 1
        return self.data


def cached(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_it_is_fetched_once(tmp_path: Path) -> None:
    """The second time it comes from the cache, which holds nothing else."""
    fetch = Fetch()
    for _ in range(2):
        tokenizer = await load_tokenizer(SHA256, fetch, tmp_path / "cache")
        assert tokenizer.decode(tokenizer.encode("hello").ids) == "hello"
    assert fetch.count == 1
    assert cached(tmp_path / "cache") == [f"{SHA256}.json"]


async def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    """What does not have the hash in its name is not used."""
    (tmp_path / f"{SHA256}.json").write_bytes(DATA[:-10])
    fetch = Fetch()
    await load_tokenizer(SHA256, fetch, tmp_path)
    assert fetch.count == 1
    assert (tmp_path / f"{SHA256}.json").read_bytes() == DATA


async def test_another_tokenizer_than_announced_is_refused(tmp_path: Path) -> None:
    """Its ids would mean other tokens."""
    with pytest.raises(ProtocolError, match="hash"):
        await load_tokenizer(SHA256, Fetch(DATA + b" "), tmp_path)
    assert not cached(tmp_path)


async def test_a_hash_cannot_lead_out_of_the_cache(tmp_path: Path) -> None:
    """The server's word becomes a file name only if it is a hash."""
    with pytest.raises(ProtocolError, match="not a SHA-256"):
        await load_tokenizer("../" * 20 + "abcd", Fetch(), tmp_path)


async def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    """The tokenizer is used all the same."""
    (tmp_path / "file").write_text("")
    assert await load_tokenizer(SHA256, Fetch(), tmp_path / "file")


def test_what_is_no_tokenizer() -> None:
    """The message says whose file it was."""
    with pytest.raises(FormatError, match="target"):
        parse(b"{}")
