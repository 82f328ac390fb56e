"""Text out of tokens, one at a time: whole characters only, and nothing from a stop string on.

A token has no text of its own: a character may take several tokens, and decoders treat the first token specially. So
each step decodes a short window (the last tokens that gave text, then the new ones) and shows what it adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from wisp.types import TokenId, TokenLogprobs

CONTEXT_TOKENS = 8
"""Of the prompt, decoded before the first output token: a SentencePiece decoder strips a space at the very start."""

_BROKEN = "\ufffd"


class Detokeniser:
    """Text that each token adds; together exactly what decoding all tokens at once adds to the context."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[TokenId] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(context[-CONTEXT_TOKENS:])
        self._num_shown = len(self._window)
        self._shown = self._text = self._decode(self._window)

    @property
    def pending(self) -> bool:
        """Whether the last tokens end in the middle of a character."""
        return self._text != self._shown

    def push(self, token: TokenId) -> str:
        """Text that `token` completes; empty while a character is unfinished, and for special tokens."""
        self._window.append(token)
        self._text = self._decode(self._window)
        return "" if self._text.endswith(_BROKEN) else self._show()

    def finish(self) -> str:
        """What is left when no more tokens come: an unfinished character shows as U+FFFD."""
        return self._show()

    def _show(self) -> str:
        text = self._text[_num_shared(self._shown, self._text) :]
        if text:
            self._slide()
        return text

    def _slide(self) -> None:
        """Keep only the tokens just shown, unless they have no text on their own to stand for the past."""
        self._shown = self._text
        window = self._window[self._num_shown :]
        if alone := self._decode(window):
            self._window, self._shown, self._text = window, alone, alone
        self._num_shown = len(self._window)

    def _decode(self, tokens: Sequence[TokenId]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


class StopStrings:
    """Strings, none empty, that end a text; the match that is complete first counts, so tokens' boundaries make no difference."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)

    def find(self, text: str) -> int | None:
        """Where the first complete match starts; of two that end together, the longer one."""
        matches = [(start + len(stop), start) for stop in self._strings if (start := text.find(stop)) >= 0]
        return min(matches)[1] if matches else None

    def first_undecided(self, text: str) -> int:
        """From where on `text` could be the beginning of a stop string; its length if nowhere."""
        longest = max(map(len, self._strings), default=1)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._strings):
                return start
        return len(text)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to the text."""

    token: TokenId
    text: str
    logprobs: TokenLogprobs | None = None


class TextStream:
    """Output tokens in, pieces of text out, until a stop string is found."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str], context: Sequence[TokenId]) -> None:
        self._detokeniser = Detokeniser(tokenizer, context)
        self._stop_strings = StopStrings(stop_strings)
        self._held: list[Piece] = []
        self.stopped = False
        """Whether a stop string was found; nothing may be pushed afterwards."""

    def push(self, token: TokenId, logprobs: TokenLogprobs | None = None) -> list[Piece]:
        """Pieces that are now certain to belong to the text."""
        self._held.append(Piece(token, self._detokeniser.push(token), logprobs))
        self._stop()
        return self._release(0 if self.stopped else self._num_undecided())

    def finish(self) -> list[Piece]:
        """The pieces still held back, when the generation has ended without a stop string."""
        if self._held and (rest := self._detokeniser.finish()):
            last = self._held[-1]
            self._held[-1] = replace(last, text=last.text + rest)
            self._stop()
        return self._release(0)

    def _stop(self) -> None:
        cut = self._stop_strings.find("".join(piece.text for piece in self._held))
        if cut is not None:
            self.stopped = True
            self._held = _cut(self._held, cut)

    def _num_undecided(self) -> int:
        """How many of the last pieces may not be shown yet: whole tokens, so that each shows its text at once."""
        if self._detokeniser.pending:
            return len(self._held)
        certain = self._stop_strings.first_undecided("".join(piece.text for piece in self._held))
        for index, piece in enumerate(self._held):
            certain -= len(piece.text)
            if certain < 0:
                return len(self._held) - index
        return 0

    def _release(self, num_kept: int) -> list[Piece]:
        released = self._held[: len(self._held) - num_kept]
        del self._held[: len(released)]
        return released


def _num_shared(shown: str, text: str) -> int:
    """Length of the common beginning: all that was shown, unless that ended in a character now complete."""
    if text.startswith(shown):
        return len(shown)
    return next(index for index, character in enumerate(shown) if text[index : index + 1] != character)


def _cut(pieces: Sequence[Piece], length: int) -> list[Piece]:
    """The pieces that make up the first `length` characters, the last one shortened where it goes beyond."""
    kept: list[Piece] = []
    for piece in pieces:
        if length <= 0:
            break
        kept.append(replace(piece, text=piece.text[:length]))
        length -= len(piece.text)
    return kept
