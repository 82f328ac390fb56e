"""Texts and bytes of tokens in log-probabilities, for both kinds of vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.edge.tokenizers_of_tests import byte_level, sentencepiece
from wisp.edge.openai.logprobs import LOWEST, TokenTexts, chat_logprobs, completion_logprobs
from wisp.edge.text import Piece, TextStream
from wisp.types import TokenLogprobs


def pieces_of(tokenizer: Tokenizer, text: str) -> list[Piece]:
    context = tokenizer.encode("a", add_special_tokens=False).ids
    stream, pieces = TextStream(tokenizer, (), context), []
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        pieces += stream.push(token, TokenLogprobs(-1.0, ((token, -1.0),)))
    return pieces + stream.finish()


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@given(text=st.text(alphabet="ab é日👍", min_size=1, max_size=12))
def test_tokens_and_bytes_joined_are_the_text(make: Callable[[], Tokenizer], text: str) -> None:
    """Also where a character takes several tokens: its bytes are spread, its text comes once."""
    tokenizer = make()
    pieces = pieces_of(tokenizer, text)
    entries = chat_logprobs(pieces, TokenTexts(tokenizer))["content"]
    whole = "".join(piece.text for piece in pieces)
    assert "".join(entry["token"] for entry in entries) == whole
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == whole
    older = completion_logprobs(pieces, TokenTexts(tokenizer), 7)
    assert "".join(older["tokens"]) == whole
    assert older["text_offset"] == [7 + len("".join(older["tokens"][:i])) for i in range(len(pieces))]


def test_alternatives_keep_their_space() -> None:
    """An alternative is shown as it would continue the text, not as it would begin one."""
    tokenizer = sentencepiece()
    assert TokenTexts(tokenizer).text(tokenizer.token_to_id("▁the")) == " the"


def test_special_tokens_are_named_among_the_alternatives() -> None:
    """That the text might have ended here is worth knowing."""
    tokenizer = byte_level()
    assert TokenTexts(tokenizer).text(tokenizer.token_to_id("<eos>")) == "<eos>"


def test_infinities_become_numbers() -> None:
    """JSON cannot say that a token was impossible."""
    texts = TokenTexts(byte_level())
    piece = Piece(5, "x", TokenLogprobs(float("-inf"), ((6, float("-inf")),)))
    (entry,) = chat_logprobs([piece], texts)["content"]
    assert (entry["logprob"], entry["top_logprobs"][0]["logprob"]) == (LOWEST, LOWEST)
    assert completion_logprobs([piece], texts, 0)["token_logprobs"] == [LOWEST]


def test_the_chosen_token_is_always_among_the_older_forms_alternatives() -> None:
    """As in OpenAI's own completions."""
    texts = TokenTexts(byte_level())
    older = completion_logprobs([Piece(5, "x", TokenLogprobs(-3.0)), Piece(6, "y")], texts, 0)
    assert older["top_logprobs"] == [{"x": -3.0}, {}]
