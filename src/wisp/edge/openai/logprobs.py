"""Log-probabilities in the two forms of the API; the tokens' texts joined are the choice's text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from wisp.edge.text import Piece
from wisp.types import TokenId


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes: printable ones as they are, others from U+0100."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_alphabet()
LOWEST = -9999.0
"""JSON has no infinity."""

_BROKEN = "\ufffd"


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """Texts and bytes of tokens that stand alone, as alternatives do."""

    tokenizer: Tokenizer
    _anchor: list[TokenId] = field(init=False)
    _anchor_text: str = field(init=False)

    def __post_init__(self) -> None:
        # Decoders strip a space at the very start: a token's own text shows after another one.
        anchor = self.tokenizer.encode("a", add_special_tokens=False).ids
        object.__setattr__(self, "_anchor", anchor)
        object.__setattr__(self, "_anchor_text", self._decode(anchor))

    def text(self, token: TokenId) -> str:
        """What the token shows in the middle of a text; special tokens by their name."""
        return self._decode([*self._anchor, token])[len(self._anchor_text) :]

    def bytes_of(self, token: TokenId, text: str) -> list[int]:
        """Bytes of a token that shows as `text`; its own where it holds only a part of a character."""
        own = self.text(token)
        return self._own_bytes(token, own) if _BROKEN in own else list(text.encode())

    def _own_bytes(self, token: TokenId, text: str) -> list[int]:
        name = self.tokenizer.id_to_token(token) or ""
        if len(name) == len("<0x00>") and name.startswith("<0x"):
            return [int(name[3:5], 16)]
        return [_BYTES[character] for character in name] if set(name) <= _BYTES.keys() else list(text.encode())

    def _decode(self, tokens: Sequence[TokenId]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def chat_logprobs(pieces: Iterable[Piece], texts: TokenTexts) -> dict[str, Any]:
    """`logprobs` of a chat choice or chunk."""
    return {"content": [_chat_entry(piece, texts) for piece in pieces], "refusal": None}


def _chat_entry(piece: Piece, texts: TokenTexts) -> dict[str, Any]:
    logprobs = piece.logprobs
    top = [] if logprobs is None else logprobs.top
    return {
        **_named(texts, piece.token, piece.text, 0.0 if logprobs is None else logprobs.logprob),
        "top_logprobs": [_named(texts, token, _top_text(texts, piece, token), value) for token, value in top],
    }


def _named(texts: TokenTexts, token: TokenId, text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LOWEST), "bytes": texts.bytes_of(token, text)}


def completion_logprobs(pieces: Sequence[Piece], texts: TokenTexts, offset: int) -> dict[str, Any]:
    """`logprobs` of a completion choice or chunk whose text starts at `offset`."""
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    return {
        "tokens": [piece.text for piece in pieces],
        "token_logprobs": [None if piece.logprobs is None else max(piece.logprobs.logprob, LOWEST) for piece in pieces],
        "top_logprobs": [_top(piece, texts) for piece in pieces],
        "text_offset": offsets,
    }


def _top(piece: Piece, texts: TokenTexts) -> dict[str, float]:
    """The most likely tokens by their text, the chosen one always among them."""
    if piece.logprobs is None:
        return {}
    top = {_top_text(texts, piece, token): max(value, LOWEST) for token, value in reversed(piece.logprobs.top)}
    return dict(reversed(top.items())) | {piece.text: max(piece.logprobs.logprob, LOWEST)}


def _top_text(texts: TokenTexts, piece: Piece, token: TokenId) -> str:
    return piece.text if token == piece.token else texts.text(token)
