"""Lossless in distribution: the real `verify` at 100,000 seeds against exact probabilities, and mutants that must fail."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engines.chi_square import FALSE_ALARM, p_value
from wisp.engines import processing, sampling
from wisp.engines.noise import Purpose, absorb, gumbel
from wisp.engines.processing import Rows, SamplingItem
from wisp.engines.sampling import Decision, draft_tokens, verify
from wisp.types import AcceptanceRule, DraftedToken, SamplingParams, SparseDistribution

torch.set_num_threads(1)

N = 100_000
COUPLED, REJECTION = AcceptanceRule
P = np.array([0.50, 0.25, 0.15, 0.10])
Q_WEIGHTS = (6554, 13107, 19661, 26214)
"""(0.1, 0.2, 0.3, 0.4) as a drafter would send it."""
Q = np.array(Q_WEIGHTS) / sum(Q_WEIGHTS)
NEXT = np.array([0.15, 0.40, 0.05, 0.40])
"""The target's distribution after an accepted token."""
DRAFTED = tuple(DraftedToken(token, None, SparseDistribution((0, 1, 2, 3), Q_WEIGHTS)) for token in range(4))


@pytest.fixture(scope="module", autouse=True)
def _no_collector() -> Iterator[None]:
    """Millions of small live objects make the garbage collector the most expensive part of these tests."""
    gc.disable()
    yield
    gc.enable()


@cache
def params(rule: AcceptanceRule, **settings: float) -> list[SamplingParams]:
    """One request per seed."""
    return [
        SamplingParams(
            temperature=settings.get("temperature", 1.0),
            seed=seed,
            rule=rule,
            top_k=int(settings.get("top_k", 0)),
            top_p=settings.get("top_p", 1.0),
        )
        for seed in range(N)
    ]


def drawn_from(q: np.ndarray, seed: int = 0) -> list[int]:
    """N independent draws from q, by noise that has nothing to do with ours."""
    return np.random.default_rng(seed).choice(len(q), N, p=q).tolist()


def items_at(position: int, drafts: Sequence[DraftedToken]) -> list[SamplingItem]:
    """Requests whose drafts begin with `position` tokens that the target is certain of."""
    certain = (DraftedToken(0),) * position
    return [SamplingItem((1,), 1, p, (*certain, one)) for p, one in zip(params(REJECTION), drafts, strict=True)]


def logits_at(position: int) -> Tensor:
    """Logits of one item of `items_at`: certainty of token 0, then P, then NEXT."""
    certain = np.tile([1.0, 0.0, 0.0, 0.0], (position, 1))
    return torch.from_numpy(np.vstack([certain, P, NEXT])).log().float()


def cells(decisions: Sequence[Decision], items: Sequence[SamplingItem], position: int) -> np.ndarray:
    """Counts of what can happen at `position`: token v accepted and w after it [4 v + w], v as replacement [16 + v]."""
    outcomes = [
        4 * item.draft[position].token + d.next_token if d.num_accepted > position else 16 + d.next_token
        for item, d in zip(items, decisions, strict=True)
    ]
    assert all(d.num_accepted >= position for d in decisions)
    return np.bincount(outcomes, minlength=20)


EXPECTED = np.concatenate([np.outer(np.minimum(P, Q), NEXT).ravel(), np.maximum(P - Q, 0.0)])
"""Probabilities of `cells` for the right rule: what is accepted, what follows it, and the residual."""


def one_position(position: int = 0) -> float:
    """p-value of the rejection rule at one position, with drafts really drawn from q."""
    items = items_at(position, [DRAFTED[token] for token in drawn_from(Q, position)])
    decisions = verify(logits_at(position).repeat(N, 1), items, 4)
    return p_value(cells(decisions, items, position), EXPECTED)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_acceptance_residual_and_what_follows(position: int) -> None:
    """At each position of a draft: how often each token is accepted, the residual exactly, and the bonus token."""
    assert one_position(position) > FALSE_ALARM


def test_expected_cells_add_up_to_the_target() -> None:
    """Accepted and replaced together give P: the identity that makes the rule lossless."""
    assert EXPECTED[:16].reshape(4, 4).sum(1) + EXPECTED[16:] == pytest.approx(P)


MUTANTS: dict[str, tuple[str, Callable[..., object]]] = {
    "q known only at the drafted token": (
        "_proposal",
        lambda drafted: ((drafted.token,), (Q[drafted.token],)),
    ),
    "replacement from p": ("residual", lambda p, _: p),
    "residual |p - q|": ("residual", lambda p, q: (p - q).abs()),
    "residual q - p": ("residual", lambda p, q: (q - p).clamp(min=0.0)),
    "acceptance 5 % too likely": ("accepts", lambda u, q, p: u * q < 1.05 * p),
    "acceptance 5 % too rare": ("accepts", lambda u, q, p: u * q < p / 1.05),
}


@pytest.mark.parametrize(("name", "mutant"), MUTANTS.values(), ids=MUTANTS)
def test_wrong_rules_fail(name: str, mutant: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test refuses a wrong rule in the place of the right one."""
    monkeypatch.setattr(sampling, name, mutant)
    assert one_position() < FALSE_ALARM


def first_tokens(decisions: Sequence[Decision], drafts: Sequence[DraftedToken]) -> np.ndarray:
    """Counts of the first committed token."""
    firsts = [one.token if d.num_accepted else d.next_token for d, one in zip(decisions, drafts, strict=True)]
    return np.bincount(firsts, minlength=4)


def p_value_of_first(drafts: Sequence[DraftedToken]) -> float:
    """p-value of the first committed token against P."""
    decisions = verify(logits_at(0).repeat(N, 1), items_at(0, drafts), 4)
    return p_value(first_tokens(decisions, drafts), P)


def test_proposals_without_a_distribution() -> None:
    """Tokens proposed for certain, whatever they are, leave the output P."""
    assert p_value_of_first([DraftedToken(1)] * N) > FALSE_ALARM
    assert p_value_of_first([DraftedToken(seed % 4) for seed in range(N)]) > FALSE_ALARM


def test_reporting_the_top_of_a_full_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn from all of q, sent with its three likeliest ids: refused if ids left out count as impossible under q.

    Taken as proposed for certain they do no harm: given that x is the one left out, the proposal was certain.
    """
    top = SparseDistribution((3, 2, 1), Q_WEIGHTS[:0:-1])
    drafts = [DraftedToken(token, None, top) for token in drawn_from(Q)]
    assert p_value_of_first(drafts) > FALSE_ALARM
    taken_literally = {0: 0.0, 1: Q[1] / Q[1:].sum(), 2: Q[2] / Q[1:].sum(), 3: Q[3] / Q[1:].sum()}
    monkeypatch.setattr(sampling, "_probability", lambda drafted: taken_literally[drafted.token])
    assert p_value_of_first(drafts) < FALSE_ALARM


def drafted_with(purpose: Purpose) -> list[DraftedToken]:
    """Drafts from q by our own noise of some purpose."""
    rows = Rows.of_next_tokens([SamplingItem((1,), 1, p) for p in params(REJECTION)])
    keys = torch.from_numpy(absorb(rows.keys(), int(purpose)))
    scores = gumbel(keys, torch.arange(4)[None]) + torch.from_numpy(Q).log()
    return [DRAFTED[token] for token in scores.argmax(-1).tolist()]


def test_drafts_drawn_with_our_own_noise() -> None:
    """The drafter's own purpose is independent of test and replacement; those of test and replacement are not."""
    assert p_value_of_first(drafted_with(Purpose.DRAFT)) > FALSE_ALARM
    assert p_value_of_first(drafted_with(Purpose.ACCEPT)) < FALSE_ALARM
    assert p_value_of_first(drafted_with(Purpose.RESIDUAL)) < FALSE_ALARM


def trimmed_by_token(*, told: bool) -> float:
    """p-value of the first token when a server leaves out drafted tokens of low q, and maybe tells `verify`."""
    drafts = [DRAFTED[token] for token in drawn_from(Q)]
    items = [
        SamplingItem((1,), 1, p, () if one.token < 2 else (one,), one if told and one.token < 2 else None)
        for p, one in zip(params(REJECTION), drafts, strict=True)
    ]
    decisions = verify(logits_at(0)[:1].repeat(sum(len(item.draft) + 1 for item in items), 1), items, 4)
    return p_value(first_tokens(decisions, drafts), P)


def test_trimming_by_the_drafted_token() -> None:
    """Drafts may be cut because of the token that is cut off if the rule is told; a fresh draw instead is refused."""
    assert trimmed_by_token(told=True) > FALSE_ALARM
    assert trimmed_by_token(told=False) < FALSE_ALARM


@pytest.mark.parametrize("num_siblings", [2, 3])
def test_independent_siblings_fail(num_siblings: int) -> None:
    """Candidates for one position, each tested against all of p, then the residual: refused."""
    chance = np.random.default_rng(1)
    left = np.maximum(P - Q, 0.0)
    outcome = chance.choice(4, N, p=left / left.sum())
    for _ in range(num_siblings):
        x = chance.choice(4, N, p=Q)
        outcome = np.where(chance.random(N) * Q[x] < P[x], x, outcome)
    assert p_value(np.bincount(outcome, minlength=4), P) < FALSE_ALARM


TARGET_TABLE = torch.tensor(
    [[1.2, 0.3, -0.5, 0.0], [0.0, 0.9, 0.4, -1.0], [0.2, -0.7, 0.1, 1.1], [0.5, 0.5, -1.5, 0.6]]
)
DRAFTER_TABLE = TARGET_TABLE + torch.tensor(
    [[-0.9, 0.4, 0.8, 0.0], [0.7, -0.6, 0.0, 0.9], [0.0, 0.8, -0.8, -0.4], [0.3, -1.1, 0.9, 0.0]]
)


def three_tokens(rule: AcceptanceRule, num_drafted: int = 2) -> list[tuple[int, ...]]:
    """The first three tokens of N generations after token 0: Markov chains as models, real drafts, round after round."""
    histories: list[list[int]] = [[0] for _ in range(N)]
    active = list(range(N))
    while active:
        drafts: list[list[DraftedToken]] = [[] for _ in active]
        for _ in range(num_drafted):
            items = [
                SamplingItem(histories[i], 1, params(rule)[i], draft) for i, draft in zip(active, drafts, strict=True)
            ]
            last = [draft[-1].token if draft else histories[i][-1] for i, draft in zip(active, drafts, strict=True)]
            for draft, drafted in zip(drafts, draft_tokens(DRAFTER_TABLE[last], items, 4), strict=True):
                draft.append(drafted)
        contexts = [
            token
            for i, draft in zip(active, drafts, strict=True)
            for token in (histories[i][-1], *(d.token for d in draft))
        ]
        for i, draft, d in zip(active, drafts, verify(TARGET_TABLE[contexts], items, 4), strict=True):
            histories[i] += [*(one.token for one in draft[: d.num_accepted]), d.next_token]
        active = [i for i in active if len(histories[i]) < 4]
    return [tuple(history[1:4]) for history in histories]


@pytest.mark.parametrize("rule", AcceptanceRule)
def test_joint_distribution_of_three_tokens(rule: AcceptanceRule) -> None:
    """Over rounds, with drafts of the real drafter: all 64 triples are as likely as under the target alone."""
    p = TARGET_TABLE.double().softmax(-1).numpy()
    expected = [p[0, a] * p[a, b] * p[b, c] for a, b, c in product(range(4), repeat=3)]
    counts = np.bincount([16 * a + 4 * b + c for a, b, c in three_tokens(rule)], minlength=64)
    assert p_value(counts, expected) > FALSE_ALARM


@pytest.mark.parametrize("rule", AcceptanceRule)
def test_truncated_target_and_drafter(rule: AcceptanceRule, monkeypatch: pytest.MonkeyPatch) -> None:
    """With temperature, top-k and top-p on both sides, by the ways of large vocabularies, the output is processed p."""
    monkeypatch.setattr(processing, "_WIDTHS", (16,))
    chance = torch.Generator().manual_seed(6)
    target = torch.randn(1, 40, generator=chance) * 1.5
    drafter = target + torch.randn(1, 40, generator=chance)
    settings = {"temperature": 0.9, "top_k": 12, "top_p": 0.9}
    items = [SamplingItem((1,), 1, p) for p in params(rule, **settings)]
    drafts = draft_tokens(drafter.repeat(N, 1), items, 40)
    items = [SamplingItem((1,), 1, item.params, (one,)) for item, one in zip(items, drafts, strict=True)]
    decisions = verify(target.repeat(2 * N, 1), items, 40)
    order = np.argsort(-target[0].numpy())[:12]
    p = np.exp(target[0].double().numpy()[order] / 0.9)
    p /= p.sum()
    kept = p.cumsum() - p < 0.9
    exact = np.zeros(40)
    exact[order[kept]] = p[kept] / p[kept].sum()
    assert 4 < kept.sum() < 12
    assert 0.2 < np.mean([d.num_accepted for d in decisions]) < 0.9
    firsts = [one.token if d.num_accepted else d.next_token for d, one in zip(decisions, drafts, strict=True)]
    assert p_value(np.bincount(firsts, minlength=40), exact) > FALSE_ALARM


def test_coupled_agreement_reaches_its_bound() -> None:
    """Coupled drafts agree at least (1 - TV) / (1 + TV) of the time (Daliri et al. 2024)."""
    p, q = (table[0].double().softmax(-1).numpy() for table in (TARGET_TABLE, DRAFTER_TABLE))
    items = [SamplingItem((0,), 1, one) for one in params(COUPLED)]
    drafts = draft_tokens(DRAFTER_TABLE[:1].repeat(N, 1), items, 4)
    draws = verify(TARGET_TABLE[:1].repeat(N, 1), items, 4)
    tv = 0.5 * np.abs(p - q).sum()
    agreement = np.mean([one.token == d.next_token for one, d in zip(drafts, draws, strict=True)])
    assert (1 - tv) / (1 + tv) < agreement < 1 - tv
    assert p_value(np.bincount([one.token for one in drafts], minlength=4), q) > FALSE_ALARM


def test_chi_square_has_the_right_size() -> None:
    """The test's own p-values are uniform for a right distribution, and zero when the impossible happens."""
    chance = np.random.default_rng(2)
    values = [p_value(chance.multinomial(2000, EXPECTED), EXPECTED) for _ in range(2000)]
    assert p_value(np.histogram(values, 10, (0.0, 1.0))[0], np.full(10, 0.1)) > FALSE_ALARM
    assert p_value([5, 5, 1], [0.5, 0.5, 0.0]) == 0.0
