"""What is recorded, and how prompts are made longer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from tests.bench.traces import records
from wisp.bench.live.inputs import behind_contexts, join, join_contexts, run_wisp, stretch
from wisp.bench.live.settings import QUESTIONS
from wisp.demo.pair import TARGET
from wisp.errors import EngineError
from wisp.formats.prompts import NamedPrompt


def test_a_stretched_prompt_ends_as_it_was_recorded() -> None:
    """And has the length that was asked for, with output and drafts as they were."""
    before = records()
    for old, new in zip(before, stretch(before, 50), strict=True):
        assert new.num_prompt_tokens == 50
        assert new.tokens[-len(old.tokens) :] == old.tokens
        assert new.chains == old.chains


def test_stretched_prompts_differ_from_the_start() -> None:
    """Or they would share their caches."""
    assert len({one.tokens[:8] for one in stretch(records(), 50)}) == 4


def test_a_shorter_length_cuts_in_front() -> None:
    """Down to a single token."""
    assert [one.num_prompt_tokens for one in stretch(records(), 3)] == [3] * 4
    assert stretch(records(), 3)[0].tokens[:3] == records()[0].tokens[5:8]


def test_joined_prompts_are_as_long_as_asked_and_end_with_their_own() -> None:
    """Texts, for a real target to say something to."""
    tokenizer = Tokenizer.from_file(str(TARGET / "tokenizer.json"))
    prompts = [NamedPrompt(f"#{i}", f"def function_{i}(argument):") for i in range(3)]
    for old, new in zip(prompts, join(prompts, 40, tokenizer), strict=True):
        assert new.text.endswith(old.text)
        assert len(tokenizer.encode(new.text).ids) >= 40


def test_prompts_of_one_conversation_share_a_context() -> None:
    """Of other conversations' prompts; what follows is as it was recorded."""
    before = records(24)
    after = behind_contexts(before, 50)
    for first in range(0, 24, QUESTIONS):
        (context,) = {one.tokens[:50] for one in after[first : first + QUESTIONS]}
        own = before[first].tokens[: before[first].num_prompt_tokens]
        assert own[0] not in context
    assert len({one.tokens[:50] for one in after}) == 3
    for old, new in zip(before, after, strict=True):
        assert (new.tokens[50:], new.num_prompt_tokens, new.chains) == (
            old.tokens,
            50 + old.num_prompt_tokens,
            old.chains,
        )


def test_contexts_are_texts_for_a_real_target() -> None:
    """As long as asked for, the same for all prompts of one conversation."""
    tokenizer = Tokenizer.from_file(str(TARGET / "tokenizer.json"))
    prompts = [NamedPrompt(f"#{i}", f"def function_{i}(argument):") for i in range(2 * QUESTIONS)]
    joined = join_contexts(prompts, 100, tokenizer)
    contexts = [new.text.removesuffix(old.text) for old, new in zip(prompts, joined, strict=True)]
    assert (len(set(contexts[:QUESTIONS])), len(set(contexts))) == (1, 2)
    assert all(len(tokenizer.encode(context).ids) >= 100 for context in contexts)


async def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    """And not with a status alone."""
    with pytest.raises(EngineError, match=r"wisp nonsense ended with status 2:[\s\S]*No such command"):
        await run_wisp(["nonsense"])
