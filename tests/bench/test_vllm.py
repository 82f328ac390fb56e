"""The benchmark of the vLLM engine measures what it says; vLLM itself is not needed for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from rich.progress import Progress

from tests.fakes import FakeTarget, generate
from wisp.bench.vllm.decoding import (
    NUM_SEQUENCES,
    NUM_TOKENS,
    Decoder,
    DecodingRatio,
    DecodingTurns,
    decode,
    decoding_turns,
)
from wisp.bench.vllm.rounds import NUM_NEW_TOKENS, NUM_REQUESTS, round_ratios
from wisp.types import GenerationRequest, SamplingParams, StopRules


def own_output(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the fake target writes by plain decoding."""
    return generate(GenerationRequest(tuple(prompt), len(prompt), SamplingParams(), StopRules(num_tokens)))


def test_both_decode_the_same_prompts_and_no_prompt_twice() -> None:
    """All sequences in every step, without drafts; outputs are compared, and nothing is left behind."""
    target, prompts = FakeTarget(), []

    def plain(asked: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        prompts.extend(map(tuple, asked))
        return [own_output(prompt, num_tokens) for prompt in asked]

    with Progress(disable=True) as progress:
        ours, theirs = Decoder(partial(decode, target), os.getpid()), Decoder(plain, os.getpid())
        measured = list(decoding_turns(ours, theirs, target.card.vocabulary_size, 1, progress, "fake"))
    assert [each.num_outputs for each in measured] == [2 * number for number in NUM_SEQUENCES]
    assert all(each.num_identical == each.num_outputs for each in measured)
    assert len(set(prompts)) == len(prompts) == 2 * sum(NUM_SEQUENCES)
    assert len(target.steps) == 2 * len(NUM_SEQUENCES) * NUM_TOKENS
    assert all(member.draft == () for step in target.steps for member in step)
    assert not target.open_sessions


def test_turns_of_several_pairs_are_pooled() -> None:
    """Medians are over all turns, counts are sums; twice as long for plain vLLM is twice the rate for WISP."""
    first = DecodingTurns(8, {"WISP": [1.0], "plain": [2.0]}, {"WISP": [1.0], "plain": [1.0]}, 7, 8)
    other = DecodingTurns(8, {"WISP": [1.0], "plain": [2.0]}, {"WISP": [3.0], "plain": [3.0]}, 8, 8)
    pooled = DecodingRatio.of([first, other], "label")
    assert (pooled.times.ratio, pooled.processor_times.ratio) == (2.0, 1.0)
    assert (pooled.num_identical, pooled.num_outputs) == (15, 16)
    assert pooled.tokens_per_s == 8 * NUM_TOKENS


def test_rounds_are_of_every_shape_and_the_same_for_both_engines() -> None:
    """From the same cached prompts, with the same drafts."""
    engines = {"a": FakeTarget(), "b": FakeTarget()}
    with Progress(disable=True) as progress:
        measured = list(round_ratios(engines, 1, progress, "fake"))
    shapes = [(requests, tokens) for requests in NUM_REQUESTS for tokens in NUM_NEW_TOKENS]
    assert [each.name for each in measured] == [f"fake, {n} x {k} new tokens: a" for n, k in shapes]
    rounds = [step for step in engines["a"].steps if step[0].draft is not None]
    assert [(len(step), 1 + len(step[0].draft or ())) for step in rounds] == [s for s in shapes for _ in range(2)]
    assert engines["a"].steps == engines["b"].steps
