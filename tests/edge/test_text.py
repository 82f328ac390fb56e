"""Text out of tokens: streamed pieces are the text, characters stay whole, stop strings are exact."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.edge.tokenizers_of_tests import byte_level, sentencepiece
from wisp.edge.text import Detokeniser, StopStrings, TextStream

TOKENIZERS = {"byte-level": byte_level, "sentencepiece": sentencepiece}
unicode_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def stream(tokenizer: Tokenizer, tokens: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """Texts of the pieces, and the number of tokens taken until the end or a stop string."""
    given, texts = TextStream(tokenizer, stops, ()), []
    for count, token in enumerate(tokens, 1):
        texts += [piece.text for piece in given.push(token)]
        if given.stopped:
            return texts, count
    return texts + [piece.text for piece in given.finish()], len(tokens)


@given(text=unicode_text)
@example(text="👍🏽 é\u0301 \ufffd")
@example(text="  two leading spaces and a � in the middle")
def test_streamed_text_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Token by token, any text comes back as decoding all of it at once gives it."""
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    texts, _ = stream(tokenizer, tokens)
    assert "".join(texts) == tokenizer.decode(tokens)


@given(text=unicode_text)
def test_byte_level_text_survives_unchanged(text: str) -> None:
    """Byte-level tokens lose nothing."""
    texts, _ = stream(byte_level(), byte_level().encode(text).ids)
    assert "".join(texts) == text


@given(text=unicode_text.filter(lambda text: "\ufffd" not in text))
def test_no_piece_shows_a_broken_character(tokenizer: Tokenizer, text: str) -> None:
    """A character that takes several tokens appears once, whole."""
    texts, _ = stream(tokenizer, tokenizer.encode(text, add_special_tokens=False).ids)
    assert not any("\ufffd" in piece for piece in texts)


@given(tokens=st.lists(st.integers(0, 255 + 100), max_size=30))
def test_arbitrary_byte_level_tokens_are_decoded_exactly(tokens: list[int]) -> None:
    """A model may emit bytes that are no text: streaming shows what decoding shows, specials left out."""
    texts, _ = stream(byte_level(), tokens)
    assert "".join(texts) == byte_level().decode(tokens)


@given(prompt=unicode_text, text=unicode_text)
def test_text_continues_the_prompt(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    """With the prompt's last tokens as context, the output is what it adds to the prompt, spaces included."""
    context = tokenizer.encode(prompt, add_special_tokens=False).ids
    tokens = [token for token in tokenizer.encode("x" + text, add_special_tokens=False).ids if token != 0][1:]
    detokeniser = Detokeniser(tokenizer, context)
    texts = [detokeniser.push(token) for token in tokens] + [detokeniser.finish()]
    window = context[-8:]
    assert "".join(texts) == tokenizer.decode(window + tokens)[len(tokenizer.decode(window)) :]


def test_a_space_after_the_prompt_is_kept() -> None:
    """A SentencePiece decoder strips the first space of what it is given: the prompt's context keeps it."""
    tokenizer = sentencepiece()
    prompt, output = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("fox", "the"))
    assert Detokeniser(tokenizer, prompt).push(output[0]) == " the"
    assert Detokeniser(tokenizer).push(output[0]) == "the"


def test_special_tokens_have_no_text() -> None:
    """Special tokens are skipped, and do not make a decoder start anew after them."""
    tokenizer = sentencepiece()
    tokens = [*tokenizer.encode("fox", add_special_tokens=False).ids, 2, *tokenizer.encode("the").ids]
    assert "".join(stream(tokenizer, tokens)[0]) == "fox the"


def test_a_character_begun_in_the_prompt_is_shown_when_complete() -> None:
    """A prompt of token ids may end within a character."""
    tokenizer = byte_level()
    first, second = tokenizer.encode("ß").ids if len(tokenizer.encode("ß").ids) == 2 else (None, None)
    if first is None:
        pytest.skip("the tokenizer merged the two bytes")
    assert Detokeniser(tokenizer, [first]).push(second) == "ß"


short_text = st.text(alphabet="ab é", max_size=40)
stop_strings = st.lists(st.text(alphabet="ab é", min_size=1, max_size=4), max_size=3).map(tuple)


def expected_cut(text: str, stops: tuple[str, ...]) -> str:
    """By the definition: the first position at which some stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(text=short_text, stops=stop_strings)
def test_stop_strings_end_the_text_where_the_first_is_complete(
    tokenizer: Tokenizer, text: str, stops: tuple[str, ...]
) -> None:
    """However tokens split the text, it ends before the stop string that is complete first."""
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    texts, _ = stream(tokenizer, tokens, stops)
    assert "".join(texts) == expected_cut(tokenizer.decode(tokens), stops)


@given(text=st.text(alphabet="ab ", max_size=40), stops=stop_strings)
def test_nothing_is_read_past_a_stop_string(text: str, stops: tuple[str, ...]) -> None:
    """The stream stops with the token that completes the match, not later."""
    tokens = byte_level().encode(text).ids
    _, taken = stream(byte_level(), tokens, stops)
    before = byte_level().decode(tokens[: taken - 1]) if taken else ""
    assert expected_cut(before, stops) == before


@pytest.mark.parametrize(("text", "certain"), [("ab", 2), ("abX", 2), ("abXY", 2), ("XYab", 4), ("", 0)])
def test_what_may_become_a_stop_string_is_held_back(text: str, certain: int) -> None:
    """Only a suffix that begins a stop string is undecided."""
    assert StopStrings(("XYZ",)).first_undecided(text) == certain


def test_what_was_held_back_is_shown_at_the_end() -> None:
    """A beginning of a stop string that never came belongs to the text."""
    assert "".join(stream(byte_level(), byte_level().encode("the dog").ids, ("dogs",))[0]) == "the dog"
