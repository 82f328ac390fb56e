"""Lossless verification: the acceptance rules.

p: the target's distribution after processing, q: the drafter's, x_i: drafted token i of k, t: absolute position.

    greedy      accept while x_i = argmax of the processed logits; that argmax is the next token
    coupled     y_i = argmax_v log p_i(v) + g(s, c, t + i, v); accept while x_i = y_i; y_i is the next token
    rejection   accept while u_i q_i(x_i) < p_i(x_i); next token from max(p_i - q_i, 0) normalised, or from p_k if all
                are accepted (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2)

Noise is keyed by (seed, choice, position, purpose) alone (noise.py). docs/sampling.md has the proofs and the limits.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wisp.engines.noise import NOISE_RANGE, Int64Array, Purpose, absorb, gumbel, uniform
from wisp.engines.processing import BoolArray, FloatArray, Rows, SamplingItem, adjusted, candidates
from wisp.types import (
    DraftedToken,
    DraftStats,
    FinishReason,
    SparseDistribution,
    TokenId,
    TokenLogprobs,
)

MAX_DISTRIBUTION = 64
"""Most ids of a drafter's q that go over the wire."""

_PADDING = -1
"""An id that no vocabulary has."""
_EXCLUDED = -1e4
"""Logits this far below the largest count as impossible in a drafter's statistics, where -inf would spread."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How verification of one draft ended: its first `num_accepted` tokens are accepted, then `next_token` follows."""

    num_accepted: int
    next_token: TokenId
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per committed token, when asked for."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What is committed of a decision once the end of the generation is taken into account."""

    num_accepted: int
    next_token: TokenId | None
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...] = ()


def verify(logits: Tensor, items: Sequence[SamplingItem], vocabulary_size: int) -> list[Decision]:
    """Decide how much of each draft to accept and what follows it.

    `logits` [sum of k + 1, V >= vocabulary_size] are the target's, any float type: for each item in order, row i
    follows its history and the first i drafted tokens. Raises EngineError for logits without a finite maximum.
    """
    if not items:
        return []
    logits = _with_float64(logits)
    rows = Rows.of_drafts(items)
    processed = adjusted(logits, rows, vocabulary_size)
    ends = np.searchsorted(rows.item, np.arange(len(items)), side="right") - 1
    rejection = _by_rejection(rows)
    proposed = [drafted for item in items for drafted in (*item.draft, item.trimmed)]
    drafted = np.array([_PADDING if one is None else one.token for one in proposed], dtype=np.int64)

    choice = _own_choices(processed, rows, np.flatnonzero(~rejection))
    match = (choice == drafted) & ~rejection
    if rejection.any():
        match |= _accepted(processed, rows, proposed, np.flatnonzero(rejection & (drafted != _PADDING)))
    undecided = match & (rows.offset < rows.offset[ends][rows.item])
    finals = np.minimum.reduceat(np.where(undecided, len(match), np.arange(len(match))), ends - rows.offset[ends])
    replaced = finals[rejection[finals] & ~match[finals]]
    if len(replaced):
        choice[replaced] = _replacements(processed, rows, proposed, replaced)
    choice[match] = drafted[match]

    accepted, tokens = rows.offset[finals].tolist(), choice[finals].tolist()
    logprobs = _logprobs(logits[:, :vocabulary_size], rows, choice, finals)
    return [Decision(*parts) for parts in zip(accepted, tokens, logprobs, strict=True)]


def draft_tokens(logits: Tensor, items: Sequence[SamplingItem], vocabulary_size: int) -> list[DraftedToken]:
    """Draw the next drafted token of each item from the drafter's own `logits` [items, V >= vocabulary_size].

    The drafter processes its logits as the target does (an item's `draft` so far counts for penalties), then greedy:
    their argmax; coupled: the draw with the noise that the target will use; rejection: a draw from the distribution
    that goes with the token. Raises EngineError for logits without a finite maximum.
    """
    if not items:
        return []
    logits = _with_float64(logits)
    rows = Rows.of_next_tokens(items)
    processed = adjusted(logits, rows, vocabulary_size)
    raw = logits[:, :vocabulary_size].float()
    log_total, stats = _draft_stats(raw)
    drafts = [_Draft() for _ in items]
    greedy, rejection = np.array([item.params.greedy for item in items]), _by_rejection(rows)
    if greedy.any():
        _draft_greedily(processed, raw, log_total, np.flatnonzero(greedy), drafts)
    if (coupled := np.flatnonzero(~greedy & ~rejection)).size:
        _draft_coupled(processed, rows, coupled, drafts)
    if rejection.any():
        _draft_for_rejection(processed, rows, np.flatnonzero(rejection), drafts)
    return [
        DraftedToken(draft.token, DraftStats(*stat, draft.probability, draft.perturbed_margin), draft.distribution)
        for draft, stat in zip(drafts, stats, strict=True)
    ]


def cut(decision: Decision, draft: Sequence[DraftedToken], stop_token_ids: Set[TokenId], tokens_left: int) -> Cut:
    """End the generation where it has to: after the first stop token, or when `tokens_left` tokens are committed.

    A stop token that is the last one allowed ends it as STOP.
    """
    tokens = [drafted.token for drafted in draft[: decision.num_accepted]] + [decision.next_token]
    stops = (i + 1 for i, token in enumerate(tokens[:tokens_left]) if token in stop_token_ids)
    length, reason = next(stops, min(len(tokens), tokens_left)), None
    if length and tokens[length - 1] in stop_token_ids:
        reason = FinishReason.STOP
    elif length == tokens_left:
        reason = FinishReason.LENGTH
    next_token = decision.next_token if length > decision.num_accepted else None
    return Cut(min(length, decision.num_accepted), next_token, reason, decision.logprobs[:length])


def accepts(u: FloatArray, q: FloatArray, p: FloatArray) -> BoolArray:
    """The acceptance test of rejection sampling: accept with probability min(1, p(x) / q(x))."""
    return u * q < p


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(p - q, 0) [n, width], not normalised: what is left of the target once the drafter had its share.

    Where nothing is left, p itself: a token can be rejected with p = q up to rounding, an event of probability about
    2^-53 in which either distribution is as good.
    """
    left = (p - q).clamp_(min=0.0)
    return torch.where(left.sum(-1, keepdim=True) > 0.0, left, p)


def _by_rejection(rows: Rows) -> BoolArray:
    return np.array([item.params.by_rejection for item in rows.items])[rows.item]


def _own_choices(processed: Tensor, rows: Rows, which: Int64Array) -> Int64Array:
    """What greedy decoding or the coupled draw chooses in the rows `which`; [rows], any id in the other rows."""
    choice = np.full(len(rows.item), _PADDING - 1, dtype=np.int64)
    greedy = np.array([item.params.greedy for item in rows.items])[rows.item[which]]
    if greedy.all() and len(which) == len(choice):
        return _argmax(processed)
    if greedy.any():
        index = which[greedy]
        choice[index] = _argmax(processed[torch.from_numpy(index).to(processed.device)])
    if not greedy.all():
        keys = absorb(rows.keys(), int(Purpose.TARGET))
        for group in candidates(processed, rows, which[~greedy]):
            for part in group.parts():
                columns = perturbed(part.noise_ids(), part.logits, keys[part.rows]).argmax(-1, keepdim=True)
                choice[part.rows] = part.tokens(columns)[:, 0].cpu().numpy()
    return choice


def _argmax(logits: Tensor) -> Int64Array:
    """The lowest of the ids with the largest logit, [rows]."""
    if logits.device.type != "cpu":
        return logits.argmax(-1).cpu().numpy()
    # numpy's argmax takes a tenth of the time of torch's; it knows no bfloat16.
    ids: Int64Array = logits.to(torch.promote_types(logits.dtype, torch.float32)).numpy().argmax(-1)
    return ids


def perturbed(ids: Tensor, log_weights: Tensor, keys: Int64Array) -> Tensor:
    """`log_weights` [n, width] of `ids` [n or 1, width] plus Gumbel noise, float64 [n, width].

    The argmax of a row is a draw from its weights, normalised. `keys` [n] have their purpose absorbed.
    """
    return gumbel(torch.from_numpy(keys).to(log_weights.device), ids).add_(log_weights)


def _accepted(processed: Tensor, rows: Rows, proposed: Sequence[DraftedToken | None], which: Int64Array) -> BoolArray:
    """Which of the rows `which` accept their drafted token by rejection sampling; [rows], False elsewhere."""
    drafted = [one for one in map(proposed.__getitem__, which.tolist()) if one is not None]
    tokens, p = np.array([one.token for one in drafted]), np.empty(len(which))
    for group in candidates(processed, rows, which):
        for part in group.parts():
            mine = np.searchsorted(which, part.rows)
            columns, found = part.locate(torch.from_numpy(tokens[mine, None]).to(processed.device))
            p_token = part.log_probabilities().gather(1, columns).exp().where(found, 0.0)
            p[mine] = p_token[:, 0].cpu().numpy()
    q = np.array([_probability(one) for one in drafted])
    flags = np.zeros(len(rows.item), dtype=np.bool_)
    flags[which] = accepts(uniform(rows.keys()[which], Purpose.ACCEPT), q, p)
    return flags


def _replacements(
    processed: Tensor, rows: Rows, proposed: Sequence[DraftedToken | None], which: Int64Array
) -> Int64Array:
    """The token that follows the accepted ones in the rows `which`: from the residual, or from p after the last."""
    rejected = [proposed[row] for row in which.tolist()]
    purposes = [int(Purpose.TARGET if drafted is None else Purpose.RESIDUAL) for drafted in rejected]
    keys = absorb(rows.keys()[which], np.array(purposes))
    ids, q = _padded([((), ()) if drafted is None else _proposal(drafted) for drafted in rejected])
    choice = np.empty(len(which), dtype=np.int64)
    for group in candidates(processed, rows, which):
        for part in group.parts():
            mine = np.searchsorted(which, part.rows)
            p = part.log_probabilities().exp_()
            columns, found = part.locate(torch.from_numpy(ids[mine]).to(p.device))
            q_found = torch.from_numpy(q[mine]).to(p.device).where(found, 0.0)
            left = residual(p, torch.zeros_like(p).scatter_add_(1, columns, q_found))
            columns = perturbed(part.noise_ids(), left.log_(), keys[mine]).argmax(-1, keepdim=True)
            choice[mine] = part.tokens(columns)[:, 0].cpu().numpy()
    return choice


def _proposal(drafted: DraftedToken) -> tuple[Sequence[TokenId], Sequence[float]]:
    """Ids and probabilities of the q from which a token was drafted.

    A token without a distribution, or with one that excludes it, was proposed for certain (an n-gram drafter): q is a
    point mass, with which rejection sampling stays lossless.
    """
    q = drafted.distribution
    if q is None or drafted.token not in q.ids:
        return (drafted.token,), (1.0,)
    total = sum(q.weights)
    return q.ids, [weight / total for weight in q.weights]


def _probability(drafted: DraftedToken) -> float:
    """q(x) of the drafted token."""
    q = drafted.distribution
    if q is None or drafted.token not in q.ids:
        return 1.0
    return q.weights[q.ids.index(drafted.token)] / sum(q.weights)


def _padded(proposals: Sequence[tuple[Sequence[TokenId], Sequence[float]]]) -> tuple[Int64Array, FloatArray]:
    """Ids and probabilities as arrays [n, longest]."""
    lengths = np.array([len(ids) for ids, _ in proposals])
    filled = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    ids, q = np.full(filled.shape, _PADDING), np.zeros(filled.shape)
    ids[filled] = [token for tokens, _ in proposals for token in tokens]
    q[filled] = [probability for _, probabilities in proposals for probability in probabilities]
    return ids, q


def _logprobs(logits: Tensor, rows: Rows, tokens: Int64Array, finals: Int64Array) -> list[tuple[TokenLogprobs, ...]]:
    """Log-probabilities of the committed `tokens` [rows] of each item that asks for them."""
    results: list[tuple[TokenLogprobs, ...]] = [()] * len(rows.items)
    wanted = [item.params.num_top_logprobs for item in rows.items]
    if all(n is None for n in wanted):
        return results
    asking = np.array([n is not None for n in wanted])[rows.item]
    which = np.flatnonzero(asking & (np.arange(len(rows.item)) <= finals[rows.item]))
    log_p = logits[torch.from_numpy(which).to(logits.device)].float().log_softmax(-1)
    chosen = log_p.gather(1, torch.from_numpy(tokens[which, None]).to(logits.device))[:, 0].tolist()
    top = log_p.topk(min(max(n or 0 for n in wanted), log_p.shape[1]))
    values, ids = top.values.tolist(), top.indices.tolist()
    for row, item in enumerate(rows.item[which].tolist()):
        pairs = list(zip(ids[row], values[row], strict=True))[: wanted[item]]
        results[item] += (TokenLogprobs(chosen[row], tuple(pairs)),)
    return results


def _with_float64(logits: Tensor) -> Tensor:
    """`logits` on a device that knows float64: Apple's does not."""
    return logits.cpu() if logits.device.type == "mps" else logits


@dataclass(slots=True)
class _Draft:
    """A drafted token in the making."""

    token: TokenId = _PADDING
    probability: float = 0.0
    perturbed_margin: float | None = None
    distribution: SparseDistribution | None = None


def _draft_greedily(processed: Tensor, raw: Tensor, log_total: Tensor, which: Int64Array, drafts: list[_Draft]) -> None:
    choice = processed.argmax(-1, keepdim=True)
    probabilities = (raw.gather(1, choice) - log_total).exp()[:, 0].tolist()
    tokens = choice[:, 0].tolist()
    for row in which:
        drafts[row] = _Draft(tokens[row], probabilities[row])


def _draft_coupled(processed: Tensor, rows: Rows, which: Int64Array, drafts: list[_Draft]) -> None:
    keys = absorb(rows.keys(), int(Purpose.TARGET))
    for group in candidates(processed, rows, which):
        for part in group.parts():
            columns, lead = _lead(perturbed(part.noise_ids(), part.logits, keys[part.rows]))
            log_q = part.logits.gather(1, columns) - part.logits.logsumexp(-1, keepdim=True)
            found = torch.cat([part.tokens(columns), log_q.exp(), lead.clamp_max(NOISE_RANGE)], 1).tolist()
            for row, (token, probability, margin) in zip(part.rows, found, strict=True):
                drafts[row] = _Draft(int(token), probability, margin)


def _draft_for_rejection(processed: Tensor, rows: Rows, which: Int64Array, drafts: list[_Draft]) -> None:
    keys = absorb(rows.keys(), int(Purpose.DRAFT))
    for group in candidates(processed, rows, which):
        for part in group.parts():
            logits, columns = part.logits.topk(min(MAX_DISTRIBUTION, part.logits.shape[1]))
            ids, weights = part.tokens(columns), quantised(logits)
            drawn = perturbed(ids, weights.log(), keys[part.rows]).argmax(-1).tolist()
            for row, *found in zip(part.rows, ids.tolist(), weights.long().tolist(), drawn, strict=True):
                drafts[row] = _sparse_draft(*found)


def _sparse_draft(ids: list[TokenId], weights: list[int], drawn: int) -> _Draft:
    """A draft of `ids[drawn]` from `weights`, which descend and may end in zeros."""
    kept = sum(weight > 0 for weight in weights)
    distribution = SparseDistribution(tuple(ids[:kept]), tuple(weights[:kept]))
    return _Draft(ids[drawn], weights[drawn] / sum(weights), None, distribution)


def quantised(logits: Tensor) -> Tensor:
    """Whole weights exp(logits) * 65535, float64 [n, width], of logits whose largest is 0: unsigned 16-bit integers."""
    return (logits.double().exp() * 65535.0).round_()


def _lead(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Column and lead over the second of the best score in each row, both [n, 1]; overwrites `scores`."""
    best, column = scores.max(-1, keepdim=True)
    scores.scatter_(1, column, -torch.inf)
    return column, best - scores.amax(-1, keepdim=True)


def _draft_stats(raw: Tensor) -> tuple[Tensor, list[tuple[float, float, float, float]]]:
    """Log sum exp [n, 1], and confidence, entropy, margin and logit_std of each row of raw logits [n, V].

    With d = logits - max, Z = sum e^d: confidence 1 / Z, entropy log Z - sum(d e^d) / Z. Logits of -inf (ids that the
    model itself excludes) are left out of the standard deviation, and no margin exceeds -_EXCLUDED.
    """
    best = raw.amax(-1, keepdim=True)
    below = (raw - best).clamp_(min=_EXCLUDED)
    is_best = below == 0.0
    second = below.masked_fill(is_best, _EXCLUDED).amax(-1, keepdim=True)
    margin = torch.where(is_best.sum(-1, keepdim=True) > 1, 0.0, -second)
    mass = below.exp()
    total = mass.sum(-1, keepdim=True)
    log_total = total.log()
    entropy = log_total - mass.mul_(below).sum(-1, keepdim=True) / total
    possible: int | Tensor = raw.shape[1]
    if bool((below.amin(-1) == _EXCLUDED).any()):
        is_possible = below > _EXCLUDED
        possible = is_possible.sum(-1, keepdim=True)
        below = torch.where(is_possible, below, below.mul(is_possible).sum(-1, keepdim=True) / possible)
    deviation = below.sub_(below.mean(-1, keepdim=True)).square_().sum(-1, keepdim=True).div_(possible).sqrt_()
    return best + log_total, list(map(tuple, torch.cat([total.reciprocal(), entropy, margin, deviation], 1).tolist()))
