"""Sampling: the three rules token by token, drafting and its statistics, and the end of a generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wisp.engines.noise import NOISE_RANGE
from wisp.engines.processing import SamplingItem
from wisp.engines.sampling import MAX_DISTRIBUTION, Cut, Decision, cut, draft_tokens, residual, verify
from wisp.errors import EngineError
from wisp.types import (
    AcceptanceRule,
    DraftedToken,
    FinishReason,
    SamplingParams,
    SparseDistribution,
    TokenLogprobs,
)

torch.set_num_threads(1)

SIZE = 40
REJECTION = AcceptanceRule.REJECTION
KINDS = {
    "greedy": SamplingParams(),
    "greedy penalised": SamplingParams(repetition_penalty=1.3, frequency_penalty=0.4, logit_bias=((3, 2.0),)),
    "coupled": SamplingParams(temperature=1.0, seed=11),
    "coupled truncated": SamplingParams(temperature=0.9, top_k=9, top_p=0.9, min_p=0.01, seed=11),
    "coupled penalised": SamplingParams(temperature=1.2, top_p=0.95, presence_penalty=0.8, seed=11),
}
SAMPLED = {
    "coupled": SamplingParams(temperature=1.0, seed=5),
    "rejection": SamplingParams(temperature=1.0, seed=5, rule=REJECTION),
    "rejection truncated": SamplingParams(temperature=0.8, top_k=6, top_p=0.9, seed=5, rule=REJECTION),
}


def drafts(tokens: Sequence[int]) -> tuple[DraftedToken, ...]:
    """Drafted tokens without anything known about them."""
    return tuple(DraftedToken(token) for token in tokens)


def toy_model(seed: int, scale: float = 2.0) -> Callable[[Sequence[int]], Tensor]:
    """A language model of order two: logits [SIZE + 3] (three padding rows) after some tokens."""
    table = torch.randn(SIZE, SIZE, SIZE + 3, generator=torch.Generator().manual_seed(seed)) * scale
    return lambda tokens: table[tokens[-2], tokens[-1]]


def rows(model: Callable[[Sequence[int]], Tensor], history: Sequence[int], draft: Sequence[int]) -> Tensor:
    """Logits [k + 1, V] of a verification."""
    tokens = [*history, *draft]
    return torch.stack([model(tokens[: len(history) + i]) for i in range(len(draft) + 1)])


def generated(params: SamplingParams, next_draft: Callable[[list[int]], Sequence[int]], length: int = 60) -> list[int]:
    """Output of a toy target in rounds of whatever `next_draft` proposes."""
    model, tokens = toy_model(1), [3, 8]
    while len(tokens) < length + 2:
        draft = [token for token in next_draft(tokens) if token < SIZE]
        item = SamplingItem(tokens, 2, params, drafts(draft))
        decision = verify(rows(model, tokens, draft), [item], SIZE)[0]
        tokens = [*tokens, *draft[: decision.num_accepted], decision.next_token]
    return tokens[2 : length + 2]


@pytest.mark.parametrize("params", KINDS.values(), ids=KINDS)
def test_output_does_not_depend_on_drafts(params: SamplingParams) -> None:
    """No drafts, random drafts of any length and perfect drafts give the same tokens, greedy and coupled."""
    plain = generated(params, lambda _: ())
    assert len(set(plain)) > 5
    chance = np.random.default_rng(0)
    for _ in range(3):
        assert generated(params, lambda _: chance.integers(0, SIZE, chance.integers(0, 6)).tolist()) == plain

    def mostly_right(tokens: list[int]) -> list[int]:
        ahead = plain[len(tokens) - 2 :][: chance.integers(0, 9)]
        return [token if chance.random() < 0.8 else 7 for token in ahead]

    assert generated(params, mostly_right) == plain


@pytest.mark.parametrize("params", KINDS.values(), ids=KINDS)
def test_perfect_drafts_are_accepted_whole(params: SamplingParams) -> None:
    """A drafter with the target's own logits is never wrong under the greedy and coupled rules."""
    model, history = toy_model(1), [3, 8]
    draft: list[DraftedToken] = []
    for _ in range(6):
        item = SamplingItem(history, 2, params, draft)
        logits = rows(model, history, [drafted.token for drafted in draft])[-1:]
        draft += draft_tokens(logits, [item], SIZE)
    item = SamplingItem(history, 2, params, tuple(draft))
    decision = verify(rows(model, history, [drafted.token for drafted in draft]), [item], SIZE)[0]
    assert decision.num_accepted == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_greedy_takes_the_lowest_of_equal_ids(dtype: torch.dtype) -> None:
    """A tie goes to the lowest id, and padding rows of the embedding never win."""
    logits = torch.tensor([[1.0, 4.0, 4.0, 9.0]], dtype=dtype)
    assert verify(logits, [SamplingItem([0], 1, SamplingParams())], 3) == [Decision(0, 1)]


def test_greedy_stops_at_the_first_mismatch() -> None:
    """Agreement after a mismatch counts for nothing."""
    logits = torch.eye(5)[[1, 2, 3, 4]]
    item = SamplingItem([0], 1, SamplingParams(), drafts([1, 0, 3]))
    assert verify(logits, [item], 5) == [Decision(1, 2)]


def mixed_batch(seed: int) -> tuple[Tensor, list[SamplingItem]]:
    """Requests of every kind with drafts of a toy drafter, and the target's logits."""
    chance = np.random.default_rng(seed)
    target, drafter = toy_model(1), toy_model(1, 1.8)
    items, logits = [], []
    for index, kind in enumerate([*KINDS.values(), *SAMPLED.values()]):
        history, draft = chance.integers(0, SIZE, 4).tolist(), []
        params = replace(kind, seed=seed + index, num_top_logprobs=[None, 0, 3][index % 3])
        for _ in range(chance.integers(0, 5)):
            item = SamplingItem(history, 2, params, draft)
            draft += draft_tokens(rows(drafter, history, [one.token for one in draft])[-1:], [item], SIZE)
        trimmed = draft.pop() if len(draft) > 3 else None
        items.append(SamplingItem(history, 2, params, tuple(draft), trimmed))
        logits.append(rows(target, history, [one.token for one in draft]))
    return torch.cat(logits), items


@pytest.mark.parametrize("seed", range(5))
def test_a_decision_does_not_depend_on_the_batch(seed: int) -> None:
    """Each request of a mixed batch is decided as if it were alone, logprobs included."""
    logits, items = mixed_batch(seed)
    start = 0
    for item, decision in zip(items, verify(logits, items, SIZE), strict=True):
        end = start + len(item.draft) + 1
        assert verify(logits[start:end], [item], SIZE) == [decision]
        start = end


def test_drafting_does_not_depend_on_the_batch() -> None:
    """Each token of a batch is drafted as if it were alone."""
    logits = torch.randn(8, SIZE + 3, generator=torch.Generator().manual_seed(4)) * 2
    items = [SamplingItem([1, 2], 1, params) for params in (*KINDS.values(), *SAMPLED.values())]
    for row, drafted in enumerate(draft_tokens(logits, items, SIZE)):
        assert draft_tokens(logits[row : row + 1], items[row : row + 1], SIZE) == [drafted]


def test_nothing_to_do() -> None:
    """An empty batch gives nothing."""
    assert verify(torch.zeros(0, 4), [], 4) == []
    assert draft_tokens(torch.zeros(0, 4), [], 4) == []


@pytest.mark.parametrize("params", SAMPLED.values(), ids=SAMPLED)
def test_seed_choice_and_position_change_the_draw(params: SamplingParams) -> None:
    """Each of the three gives other tokens, and the same three give the same."""
    logits = torch.zeros(1, 1000)

    def drawn(item: SamplingItem) -> int:
        return verify(logits, [item], 1000)[0].next_token

    params = replace(params, top_k=0, top_p=1.0)
    base = SamplingItem([1, 2], 1, params)
    others = [
        SamplingItem([1, 2], 1, replace(params, seed=(1 << 64) - 1)),
        SamplingItem([1, 2], 1, replace(params, choice_index=1)),
        SamplingItem([1, 2, 3], 1, params),
    ]
    assert drawn(base) == drawn(SamplingItem((7, 7), 0, params))
    assert len({drawn(item) for item in [base, *others]}) == 4


@pytest.mark.parametrize("params", [KINDS["greedy"], SAMPLED["coupled"], SAMPLED["rejection"]], ids=str)
def test_ids_outside_the_vocabulary_are_rejected(params: SamplingParams) -> None:
    """Drafted ids that no vocabulary has, and distributions over them, are harmless."""
    for token in (SIZE, SIZE + 2, 1 << 31, -1, -2):
        for distribution in (None, SparseDistribution((token, 1), (1, 2)), SparseDistribution((2, 1), (1, 2))):
            item = SamplingItem([1, 2], 1, params, (DraftedToken(token, None, distribution),))
            decision = verify(rows(toy_model(1), [1, 2], [4]), [item], SIZE)[0]
            assert decision.num_accepted == 0
            assert 0 <= decision.next_token < SIZE


def test_rejection_accepts_all_of_an_equal_distribution() -> None:
    """With q = p (powers of two, exact in 16 bits) nothing is ever rejected."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().repeat(2, 1)
    q = SparseDistribution((0, 1, 2, 3), (4, 2, 1, 1))
    items = [
        SamplingItem([0], 1, SamplingParams(temperature=1.0, seed=seed, rule=REJECTION), (DraftedToken(x, None, q),))
        for seed in range(500)
        for x in range(4)
    ]
    assert all(d.num_accepted == 1 for d in verify(logits.repeat(len(items), 1), items, 4))


def test_rejection_never_accepts_what_the_target_excludes() -> None:
    """A token that truncation removed is rejected, and its replacement is never one of those."""
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0]).repeat(2, 1)
    params = SamplingParams(temperature=1.0, top_k=2, rule=REJECTION)
    items = [SamplingItem([0], 1, replace(params, seed=seed), drafts([2 + seed % 2])) for seed in range(500)]
    decisions = verify(logits.repeat(len(items), 1), items, 4)
    assert {(d.num_accepted, d.next_token) for d in decisions} == {(0, 0), (0, 1)}


def test_an_empty_residual_falls_back_to_the_target() -> None:
    """Where p and q are equal, so that nothing is left of p, the replacement comes from p."""
    p = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.5, 0.0], [0.75, 0.25, 0.0]], dtype=torch.float64)
    assert residual(p, q).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.25]]


def test_a_trimmed_draft_gives_the_tokens_of_the_whole() -> None:
    """Under rejection the position where a draft is cut ends as it would have ended in the whole draft."""
    seen = set()
    for seed in range(60):
        params = SamplingParams(temperature=1.0, seed=seed, rule=REJECTION)
        model, drafter, history, draft = toy_model(1), toy_model(1, 1.5), [3, 8], []
        for _ in range(3):
            logits = rows(drafter, history, [one.token for one in draft])[-1:]
            draft += draft_tokens(logits, [SamplingItem(history, 2, params, draft)], SIZE)
        logits = rows(model, history, [one.token for one in draft])
        whole = verify(logits, [SamplingItem(history, 2, params, tuple(draft))], SIZE)[0]
        part = verify(logits[:2], [SamplingItem(history, 2, params, tuple(draft[:1]), draft[1])], SIZE)[0]
        tokens = [[*(one.token for one in draft[: d.num_accepted]), d.next_token] for d in (whole, part)]
        assert tokens[1] == tokens[0][:2]
        seen.add((whole.num_accepted, part.num_accepted))
    assert {(0, 0), (1, 1), (2, 1), (3, 1)} <= seen


def test_damaged_logits_are_refused() -> None:
    """NaN in the logits of either model is an EngineError."""
    logits = torch.full((1, 4), math.nan)
    with pytest.raises(EngineError, match="row 0"):
        verify(logits, [SamplingItem([0], 1, SamplingParams())], 4)
    with pytest.raises(EngineError, match="row 0"):
        draft_tokens(logits, [SamplingItem([0], 1, SamplingParams())], 4)


def test_logprobs_are_of_raw_logits() -> None:
    """One entry per committed token, of the masked but otherwise unprocessed logits, most likely first."""
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    best = logits[:, :7].argmax(-1).tolist()
    params = SamplingParams(num_top_logprobs=3, logit_bias=((5, 0.001),))
    items = [
        SamplingItem([0], 1, params, drafts(best[:2])),
        SamplingItem([0], 1, replace(params, num_top_logprobs=0), drafts([(best[0] + 1) % 7, 0])),
        SamplingItem([0], 1, SamplingParams(), drafts(best[:2])),
    ]
    full, chosen_only, none = verify(logits.repeat(3, 1), items, 7)
    expected = logits[:, :7].log_softmax(-1)
    assert len(full.logprobs) == 3
    for row, entry in enumerate(full.logprobs):
        assert entry.logprob == pytest.approx(expected[row].max().item())
        assert [token for token, _ in entry.top] == expected[row].argsort(descending=True)[:3].tolist()
        assert [value for _, value in entry.top] == pytest.approx(expected[row].topk(3).values.tolist())
    assert chosen_only.logprobs == (TokenLogprobs(full.logprobs[0].logprob),)
    assert none.logprobs == ()


def test_logprobs_name_the_accepted_token() -> None:
    """Under rejection an accepted token need not be the likeliest: its own logprob is given."""
    params = SamplingParams(temperature=1.0, rule=REJECTION, num_top_logprobs=20)
    logits = torch.tensor([2.0, 1.0, 0.0]).repeat(2, 1)
    items = [SamplingItem([0], 1, replace(params, seed=seed), drafts([2])) for seed in range(60)]
    log_p = logits[0].log_softmax(-1).tolist()
    accepted = 0
    for decision in verify(logits.repeat(60, 1), items, 3):
        accepted += decision.num_accepted
        tokens = [2] * decision.num_accepted + [decision.next_token]
        assert [entry.logprob for entry in decision.logprobs] == pytest.approx([log_p[token] for token in tokens])
        assert all(len(entry.top) == 3 for entry in decision.logprobs)
    assert accepted > 0


def naive_stats(logits: np.ndarray) -> tuple[float, float, float, float]:
    """Confidence, entropy, margin and deviation in float64, by their definitions."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    first, second = np.sort(logits)[::-1][:2]
    return p.max(), -(p * np.log(p)).sum(), first - second, logits.std()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 2.0, 12.0]))
def test_draft_statistics(seed: int, scale: float) -> None:
    """The four statistics are those of the raw masked logits, before bias and temperature."""
    logits = torch.randn(2, SIZE + 3, generator=torch.Generator().manual_seed(seed)) * scale - 5
    params = [SamplingParams(logit_bias=((3, 1.0),)), SamplingParams(temperature=0.3, top_k=3)]
    for row, drafted in enumerate(draft_tokens(logits, [SamplingItem([1], 1, p) for p in params], SIZE)):
        stats = drafted.stats
        assert stats is not None
        confidence, entropy, margin, deviation = naive_stats(logits[row, :SIZE].double().numpy())
        assert stats.confidence == pytest.approx(confidence, rel=1e-4)
        assert stats.entropy == pytest.approx(entropy, rel=1e-3, abs=1e-5)
        assert stats.margin == pytest.approx(margin, rel=1e-3, abs=1e-5)
        assert stats.logit_std == pytest.approx(deviation, rel=1e-3)


def test_statistics_of_odd_logits_are_finite() -> None:
    """Ties, excluded ids and a vocabulary of one give finite statistics."""
    rows_of_logits = [[1.0, 1.0, 0.0, 0.0], [1.0, -math.inf, 3.0, -math.inf], [2.0] + [-math.inf] * 3]
    items = [SamplingItem([0], 1, SamplingParams(temperature=1.0))] * 3
    tie, excluded, only = (one.stats for one in draft_tokens(torch.tensor(rows_of_logits), items, 4))
    assert tie is not None
    assert excluded is not None
    assert only is not None
    assert tie.margin == 0.0
    assert (excluded.margin, excluded.logit_std) == pytest.approx((2.0, 1.0))
    assert excluded.entropy == pytest.approx(naive_stats(np.array([1.0, 3.0]))[1], rel=1e-5)
    assert (only.confidence, only.entropy, only.logit_std) == (1.0, 0.0, 0.0)
    (single,) = draft_tokens(torch.zeros(1, 4), items[:1], 1)
    for stats in (tie, excluded, only, single.stats):
        assert stats is not None
        numbers = (stats.confidence, stats.entropy, stats.margin, stats.logit_std, stats.token_probability)
        assert all(math.isfinite(number) for number in (*numbers, stats.perturbed_margin))
    assert only.perturbed_margin == NOISE_RANGE


def test_token_probability_and_perturbed_margin() -> None:
    """q(x) is of the processed distribution (greedy: of the raw one); the perturbed margin exists under coupling."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    by_kind = {
        name: draft_tokens(logits, [SamplingItem([0], 1, params)], 4)[0]
        for name, params in {
            "greedy": SamplingParams(),
            "coupled": SamplingParams(temperature=0.5, top_k=2, seed=1),
            "rejection": SamplingParams(temperature=0.5, top_k=2, seed=1, rule=REJECTION),
        }.items()
    }
    truncated = torch.tensor([4.0, 2.0]).double().softmax(-1).tolist()
    greedy, coupled, rejection = (by_kind[name].stats for name in ("greedy", "coupled", "rejection"))
    assert greedy is not None
    assert coupled is not None
    assert rejection is not None
    assert greedy.token_probability == pytest.approx(logits.softmax(-1).max().item())
    assert coupled.token_probability == pytest.approx(truncated[by_kind["coupled"].token])
    assert rejection.token_probability == pytest.approx(truncated[by_kind["rejection"].token], rel=1e-4)
    assert (greedy.perturbed_margin, rejection.perturbed_margin) == (None, None)
    assert coupled.perturbed_margin is not None
    assert coupled.perturbed_margin > 0.0
    assert [one.distribution is not None for one in by_kind.values()] == [False, False, True]


def test_a_wide_perturbed_margin_means_acceptance() -> None:
    """The margin is the distance by which the target's logits may differ before the draw does."""
    chance = torch.Generator().manual_seed(8)
    logits = torch.randn(300, SIZE, generator=chance) * 2
    items = [SamplingItem([1], 1, SamplingParams(temperature=1.0, seed=seed)) for seed in range(300)]
    drafted = draft_tokens(logits, items, SIZE)
    shifted = logits + (torch.rand(300, SIZE, generator=chance) - 0.5)
    draws = verify(shifted, items, SIZE)
    wide = [i for i, one in enumerate(drafted) if one.stats is not None and (one.stats.perturbed_margin or 0.0) > 1.0]
    assert 50 < len(wide) < 300
    assert all(draws[i].next_token == drafted[i].token for i in wide)
    assert any(draw.next_token != one.token for draw, one in zip(draws, drafted, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([0, 5, 300]), st.sampled_from([1.0, 0.8]), st.sampled_from([0.1, 1.0, 4.0])
)
def test_quantised_distributions_are_valid(seed: int, top_k: int, top_p: float, scale: float) -> None:
    """At most 64 ids, positive 16-bit weights, the likeliest first, the token among them; near the real q."""
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(seed)) * scale
    params = SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p, seed=seed, rule=REJECTION)
    (drafted,) = draft_tokens(logits, [SamplingItem([1], 1, params)], 400)
    q = drafted.distribution
    assert q is not None
    assert 1 <= len(q.ids) == len(set(q.ids)) <= MAX_DISTRIBUTION
    assert len(q.weights) == len(q.ids)
    assert q.weights[0] == 65535
    assert list(q.weights) == sorted(q.weights, reverse=True)
    assert q.weights[-1] >= 1
    assert drafted.token in q.ids
    ratios = (logits[0, list(q.ids)] - logits.max()).exp() * 65535
    assert q.weights == pytest.approx(ratios.tolist(), abs=0.51)


STOP = frozenset({7, 8})


@pytest.mark.parametrize(
    ("num_accepted", "next_token", "tokens_left", "expected"),
    [
        (0, 1, 5, Cut(0, 1, None)),
        (2, 1, 5, Cut(2, 1, None)),
        (2, 1, 3, Cut(2, 1, FinishReason.LENGTH)),
        (2, 1, 2, Cut(2, None, FinishReason.LENGTH)),
        (2, 1, 1, Cut(1, None, FinishReason.LENGTH)),
        (2, 1, 0, Cut(0, None, FinishReason.LENGTH)),
        (2, 7, 5, Cut(2, 7, FinishReason.STOP)),
        (2, 7, 3, Cut(2, 7, FinishReason.STOP)),
        (2, 7, 2, Cut(2, None, FinishReason.LENGTH)),
        (3, 1, 9, Cut(3, None, FinishReason.STOP)),
        (3, 1, 3, Cut(3, None, FinishReason.STOP)),
        (3, 8, 2, Cut(2, None, FinishReason.LENGTH)),
        (4, 8, 9, Cut(3, None, FinishReason.STOP)),
    ],
)
def test_cut(num_accepted: int, next_token: int, tokens_left: int, expected: Cut) -> None:
    """A draft 4, 5, 7, 6 with stop tokens 7 and 8: the first stop token or the last allowed token ends it."""
    logprobs = tuple(TokenLogprobs(float(-i)) for i in range(num_accepted + 1))
    result = cut(Decision(num_accepted, next_token, logprobs), drafts([4, 5, 7, 6]), STOP, tokens_left)
    length = expected.num_accepted + (expected.next_token is not None)
    assert result == replace(expected, logprobs=logprobs[:length])


def test_cut_ignores_what_was_not_accepted() -> None:
    """A stop token among rejected drafted tokens ends nothing."""
    assert cut(Decision(1, 3), drafts([4, 7]), STOP, 9) == Cut(1, 3, None)
