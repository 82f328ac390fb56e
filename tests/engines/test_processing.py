"""Processing: every step against a naive reference, transformers where it has the same convention, and row by row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from wisp.engines import processing
from wisp.engines.processing import Candidates, Rows, SamplingItem, adjusted, candidates
from wisp.errors import EngineError
from wisp.types import DraftedToken, SamplingParams

torch.set_num_threads(1)

SIZE = 23


@pytest.fixture(
    scope="module", autouse=True, params=[((128, 1024), 1 << 22), ((2, 8), 16)], ids=["sorted", "narrow first"]
)
def _widths(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small vocabularies are sorted at once; with small widths they take the ways of large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing, "_WIDTHS", request.param[0])
        patch.setattr(processing, "_MOST_ELEMENTS", request.param[1])
        yield


def item(
    params: SamplingParams, history: Sequence[int] = (1, 2), draft: Sequence[int] = (), prompt: int = 1
) -> SamplingItem:
    """A request with drafted tokens of which nothing else is known."""
    return SamplingItem(history, prompt, params, tuple(DraftedToken(token) for token in draft))


def parts(logits: Tensor, items: Sequence[SamplingItem], size: int = SIZE) -> list[Candidates]:
    """Candidates of all rows that verification needs."""
    rows = Rows.of_drafts(items)
    return list(candidates(adjusted(logits, rows, size), rows, np.arange(len(rows.item))))


def probabilities(logits: Tensor, items: Sequence[SamplingItem], size: int = SIZE) -> np.ndarray:
    """P over the whole vocabulary, [rows, size]."""
    result = np.full((len(logits), size), np.nan)
    for group in parts(logits, items, size):
        dense = torch.zeros(len(group.rows), size, dtype=torch.float64)
        dense.scatter_(1, group.noise_ids().expand(len(group.rows), -1), group.log_probabilities().exp())
        result[group.rows] = dense.numpy()
    return result


def reference(logits: Sequence[float], history: Sequence[int], num_prompt: int, params: SamplingParams) -> list[float]:
    """P at one position by the document's steps, one id at a time."""
    x, output = np.array(logits, dtype=np.float32).astype(float), Counter(history[num_prompt:])
    for token, bias in params.logit_bias:
        x[token] += bias
    for token in set(history):
        r = params.repetition_penalty
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
    for token, count in output.items():
        x[token] -= params.frequency_penalty * count + params.presence_penalty
    order = sorted(range(len(x)), key=lambda token: (-x[token], token))
    weight = {token: math.exp((x[token] - x[order[0]]) / params.temperature) for token in order}
    if params.top_k:
        kth = x[order[min(params.top_k, len(x)) - 1]]
        order = [token for token in order if x[token] >= kth]
    if params.top_p < 1.0:
        total, mass, kept = sum(weight[token] for token in order), 0.0, []
        for token in order:
            if kept and mass >= params.top_p * total:
                break
            kept.append(token)
            mass += weight[token]
        order = kept
    order = [token for token in order if weight[token] >= params.min_p]
    total = sum(weight[token] for token in order)
    return [weight[token] / total if token in order else 0.0 for token in range(len(x))]


def logits_strategy(rows: int, size: int = SIZE) -> st.SearchStrategy[Tensor]:
    """Logits on a grid of quarters: many ties, as bfloat16 has them, and nothing that rounding could decide."""
    row = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=size, max_size=size)
    return st.lists(row, min_size=rows, max_size=rows).map(torch.tensor)


TOKENS = st.integers(0, SIZE - 1)
# Odd values of top_p and min_p keep boundaries away from sums of equal probabilities.
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.37, 0.81, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 9, 22, 23, 50]),
    top_p=st.sampled_from([1.0, 1.0, 0.013, 0.31731, 0.90417, 0.98911]),
    min_p=st.sampled_from([0.0, 0.0, 0.01037, 0.23911]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.4]),
    frequency_penalty=st.sampled_from([0.0, 0.9, -0.3]),
    logit_bias=st.lists(
        st.tuples(TOKENS, st.sampled_from([-100.0, -1.7, 2.3])), max_size=3, unique_by=lambda b: b[0]
    ).map(tuple),
)
HISTORY = st.lists(TOKENS, min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_against_the_naive_reference(data: st.DataObject) -> None:
    """Mixed requests with drafts: row i is what one position at a time gives after the history and draft[:i]."""
    items = [
        item(
            data.draw(PARAMS), history, data.draw(st.lists(TOKENS, max_size=3)), data.draw(st.integers(0, len(history)))
        )
        for history in data.draw(st.lists(HISTORY, min_size=1, max_size=3))
    ]
    num_rows = sum(len(one.draft) + 1 for one in items)
    logits = data.draw(logits_strategy(num_rows))
    result, row = probabilities(logits, items), 0
    for one in items:
        tokens = [*one.history, *(drafted.token for drafted in one.draft)]
        for offset in range(len(one.draft) + 1):
            expected = reference(
                logits[row].tolist(), tokens[: len(one.history) + offset], one.num_prompt_tokens, one.params
            )
            assert result[row] == pytest.approx(expected, rel=2e-5, abs=1e-12)
            row += 1


def test_top_p_after_a_top_k_that_everybody_ties_for() -> None:
    """All 23 ids survive top-k by a tie, the last of them too; 8 of them make up the mass that top-p asks for."""
    params = SamplingParams(temperature=1.0, top_k=1, top_p=0.31731)
    [row] = probabilities(torch.zeros(1, SIZE), [item(params, [0])])
    assert (row > 0.0).sum() == 8


@settings(max_examples=60, deadline=None)
@given(st.lists(PARAMS, min_size=2, max_size=5), st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_neighbours(params: list[SamplingParams], seed: int) -> None:
    """Alone or in any company, a row's candidates and logits are the same bits."""
    logits = torch.randn(len(params), SIZE, generator=torch.Generator().manual_seed(seed)) * 3

    def row_of(groups: list[Candidates], row: int) -> list[tuple[int, float]]:
        for group in groups:
            for i in np.flatnonzero(group.rows == row):
                ids = group.noise_ids().expand(len(group.rows), -1)[i].tolist()
                return sorted(zip(ids, group.log_probabilities()[i].tolist(), strict=True))
        raise AssertionError(row)

    together = parts(logits, [item(p) for p in params])
    for row, p in enumerate(params):
        alone = row_of(parts(logits[row : row + 1], [item(p)]), 0)
        assert [pair for pair in alone if pair[1] > -math.inf] == [
            pair for pair in row_of(together, row) if pair[1] > -math.inf
        ]


@settings(max_examples=60, deadline=None)
@given(logits_strategy(1), st.floats(0.001, 0.999), st.sampled_from([0, 3, 7]))
def test_top_p_keeps_the_smallest_sufficient_set(logits: Tensor, top_p: float, top_k: int) -> None:
    """The survivors hold the mass asked for, no subset without the least likely does, and lower ids win ties."""
    base = probabilities(logits, [item(SamplingParams(temperature=1.0, top_k=top_k))])[0]
    kept = probabilities(logits, [item(SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p))])[0] > 0.0
    assert kept.any()
    assert base[kept].sum() >= top_p - 1e-6
    least = base[kept].min()
    assert base[kept].sum() - least < top_p + 1e-6
    assert base[~kept].max(initial=0.0) <= least
    tied = np.flatnonzero(np.isclose(base, least, rtol=1e-9, atol=0.0))
    assert list(kept[tied]) == sorted(kept[tied], reverse=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        (SamplingParams(temperature=0.7), []),
        (SamplingParams(temperature=0.7, top_k=20), [TopKLogitsWarper(20)]),
        (SamplingParams(temperature=0.7, top_p=0.9), [TopPLogitsWarper(0.9)]),
        (SamplingParams(temperature=0.7, min_p=0.05), [MinPLogitsWarper(0.05)]),
        (
            SamplingParams(temperature=0.7, top_k=30, top_p=0.8, min_p=0.02, repetition_penalty=1.4),
            [TopKLogitsWarper(30), TopPLogitsWarper(0.8), MinPLogitsWarper(0.02)],
        ),
    ],
    ids=["temperature", "top-k", "top-p", "min-p", "all"],
)
def test_equals_transformers(seed: int, params: SamplingParams, warpers: list[object]) -> None:
    """The distribution is that of transformers' own processors in their own order."""
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(seed)) * 4
    history = [5, 17, 5, 250]
    scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(torch.tensor([history] * 3), logits.clone())
    for warper in [TemperatureLogitsWarper(params.temperature), *warpers]:
        scores = warper(None, scores)
    ours = probabilities(logits, [item(params, history)] * 3, 300)
    assert ours == pytest.approx(scores.double().softmax(-1).numpy(), rel=2e-5, abs=1e-12)


def test_top_k_keeps_ties_as_transformers_does() -> None:
    """All ids tied with the k-th survive."""
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    p = probabilities(logits, [item(SamplingParams(temperature=1.0, top_k=2))], 6)[0]
    assert list(p > 0.0) == [True, False, True, True, True, False]
    assert list((TopKLogitsWarper(2)(None, logits.clone())[0] > -math.inf).numpy()) == list(p > 0.0)


def test_penalties_count_the_draft_position_by_position() -> None:
    """Each row sees only the drafted tokens before it, and presence counts once, frequency each time."""
    params = SamplingParams(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.25)
    rows = Rows.of_drafts([item(params, [3, 4], [5, 5], prompt=1)])
    result = adjusted(torch.ones(3, 8), rows, 8)
    assert result[:, 3].tolist() == [1.0, 1.0, 1.0]
    assert result[:, 4].tolist() == [0.25, 0.25, 0.25]
    assert result[:, 5].tolist() == [1.0, 0.25, 0.0]


def test_drafting_sees_all_drafted_tokens() -> None:
    """The one row of a drafter is the last row of a verification of the same draft."""
    params = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.1, logit_bias=((2, 1.0),))
    one = item(params, [3, 4], [5, 5, 2])
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    verified = adjusted(logits, Rows.of_drafts([one]), 8)
    assert torch.equal(adjusted(logits[3:], Rows.of_next_tokens([one]), 8), verified[3:])


def test_ids_outside_the_vocabulary_do_not_exist() -> None:
    """Padding rows are cut off, biases and penalties on ids out of range do nothing; the input is left alone."""
    params = SamplingParams(temperature=1.0, logit_bias=((9, 5.0), (-1, 5.0), (400, 5.0)), repetition_penalty=2.0)
    logits = torch.tensor([[1.0, 2.0, 0.0, 50.0]])
    before = logits.clone()
    p = probabilities(logits, [item(params, [3, 77], [])], 3)
    assert p.shape == (1, 3)
    assert p[0] == pytest.approx(torch.tensor([1.0, 2.0, 0.0]).double().softmax(-1).numpy(), rel=1e-6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types(dtype: torch.dtype) -> None:
    """Half-precision logits give what their values in float32 give."""
    logits = (torch.randn(4, SIZE, generator=torch.Generator().manual_seed(3)) * 3).to(dtype)
    params = [
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=0.8, top_k=5),
        SamplingParams(temperature=0.8, top_p=0.7),
        SamplingParams(temperature=0.8, frequency_penalty=0.3),
    ]
    items = [item(p) for p in params]
    assert probabilities(logits, items) == pytest.approx(probabilities(logits.float(), items), rel=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 1e-310])
@pytest.mark.parametrize("top_k", [0, 5])
def test_tiny_temperatures_are_greedy(temperature: float, top_k: int) -> None:
    """No temperature overflows: all mass goes to the largest logit."""
    logits = torch.tensor([[1.0, 30.0, 29.0, -200.0, 3.0, 4.0, 5.0]])
    p = probabilities(logits, [item(SamplingParams(temperature=temperature, top_k=top_k))], 7)[0]
    assert list(p) == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_impossible_ids_stay_impossible() -> None:
    """Logits of -inf get no mass, with and without truncation, biased or penalised."""
    logits = torch.tensor([[1.0, -math.inf, 2.0, -math.inf, -math.inf]])
    for params in (
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=4),
        SamplingParams(temperature=1.0, top_p=0.99, min_p=0.001),
        SamplingParams(temperature=1.0, logit_bias=((1, 100.0),), repetition_penalty=0.5),
    ):
        p = probabilities(logits, [item(params, [1, 3])], 5)[0]
        assert list(p > 0.0) == [True, False, True, False, False]


def test_a_vocabulary_of_one() -> None:
    """One id has all the mass."""
    for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_k=1, top_p=0.5, min_p=0.5)):
        assert probabilities(torch.tensor([[7.0, 9.0]]), [item(params)], 1).tolist() == [[1.0]]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_damaged_logits_are_refused(wrong: float) -> None:
    """The error names the row, the request, the position and the value."""
    logits = torch.zeros(5, 4)
    logits[3] = wrong
    rows = Rows.of_drafts([item(SamplingParams(), (1,), (1,)), item(SamplingParams(), (1,), (1, 2))])
    with pytest.raises(EngineError, match=r"row 3 \(request 1 of the batch, after 1 drafted tokens\) is -?(nan|inf)"):
        adjusted(logits, rows, 4)


def test_a_single_nan_is_found() -> None:
    """One NaN among good logits is enough."""
    logits = torch.zeros(1, 100)
    logits[0, 57] = math.nan
    with pytest.raises(EngineError, match="row 0"):
        adjusted(logits, Rows.of_drafts([item(SamplingParams())]), 100)


def test_parts_cover_large_batches() -> None:
    """Rows split into parts come back once each, in order."""
    logits = torch.randn(700, 600, generator=torch.Generator().manual_seed(2))
    groups = parts(logits, [item(SamplingParams(temperature=1.0, seed=i)) for i in range(700)], 600)
    pieces = [piece for group in groups for piece in group.parts()]
    assert len(pieces) > 1
    assert np.concatenate([piece.rows for piece in pieces]).tolist() == list(range(700))
    assert torch.equal(torch.cat([piece.logits for piece in pieces]), groups[0].logits)


def test_a_nucleus_wider_than_every_width() -> None:
    """A flat distribution over a large vocabulary ends in the full sort, and agrees with transformers."""
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(5)) * 0.3
    scores = TopPLogitsWarper(0.95)(None, logits.clone()).double().softmax(-1).numpy()
    ours = probabilities(logits, [item(SamplingParams(temperature=1.0, top_p=0.95))], 3000)
    assert ours == pytest.approx(scores, rel=1e-4, abs=1e-12)
    assert (ours > 0.0).sum() > 1024


def test_located_tokens() -> None:
    """Columns of ids are found among candidates in any order; ids that are not there are said not to be."""
    narrow = Candidates(np.array([0]), torch.tensor([[7, 2, 5]]), torch.zeros(1, 3))
    columns, found = narrow.locate(torch.tensor([[5, 6, 2, -1, 99]]))
    assert found.tolist() == [[True, False, True, False, False]]
    assert narrow.tokens(columns)[found].tolist() == [5, 2]
    whole = Candidates(np.array([0]), None, torch.zeros(1, 3))
    columns, found = whole.locate(torch.tensor([[2, 3, -1]]))
    assert (columns[found].tolist(), found.tolist()) == ([2], [[True, False, False]])
