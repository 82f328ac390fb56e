"""From logits to the distribution a token is drawn from, for many requests with different parameters at once.

Order: vocabulary mask, logit bias, repetition penalty, frequency and presence penalty, temperature, top-k, top-p, min-p.
What one row gives depends on that row alone, whatever else is in the batch: all ways of computing it (wide or narrow)
are chosen row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wisp.engines.noise import Int64Array, absorb, request_keys
from wisp.errors import EngineError
from wisp.types import DraftedToken, SamplingParams, TokenId

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_WIDTHS = (128, 1024, 8192)
"""How many of the most likely ids are looked at before the whole vocabulary is sorted."""
_MOST_ELEMENTS = 1 << 22
"""Of the float64 arrays that truncation needs at once: 32 MiB each."""
_PART_SIZE = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Elements of float64 work that stay in the cache, or within bounds of memory."""
_SMALLEST_TEMPERATURE, _SMALLEST_FLOAT32 = 1e-300, 1.2e-38


@dataclass(frozen=True, slots=True)
class SamplingItem:
    """What sampling has to know of one request in a batch.

    Verification of k drafted tokens takes k + 1 rows of logits: row i follows the history and the first i of them.
    Drafting takes one row, which follows the history and all of `draft`.
    """

    history: Sequence[TokenId]
    """Prompt and committed tokens; an array makes penalties cheaper than a list."""
    num_prompt_tokens: int
    params: SamplingParams
    draft: Sequence[DraftedToken] = ()
    trimmed: DraftedToken | None = None
    """The drafted token after `draft`, where a server verifies only the first part of what was drafted.

    Rejection sampling has to know it: whoever cuts a draft may have looked at this token, and a fresh draw in its place
    would then not follow p. It takes no further row of logits."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a batch of logits, as arrays [rows]."""

    items: Sequence[SamplingItem]
    item: Int64Array
    """Index of the row's item."""
    offset: Int64Array
    """How many drafted tokens the row follows."""

    @classmethod
    def of_drafts(cls, items: Sequence[SamplingItem]) -> Rows:
        """K + 1 rows for each item, as verification needs them."""
        counts = np.array([len(item.draft) + 1 for item in items], dtype=np.int64)
        index = np.repeat(np.arange(len(items)), counts)
        return cls(items, index, np.arange(len(index)) - (counts.cumsum() - counts)[index])

    @classmethod
    def of_next_tokens(cls, items: Sequence[SamplingItem]) -> Rows:
        """One row for each item, as drafting needs them."""
        return cls(items, np.arange(len(items)), np.array([len(item.draft) for item in items], dtype=np.int64))

    def keys(self) -> Int64Array:
        """The noise key of each row, without its purpose."""
        params = [item.params for item in self.items]
        requests = request_keys([p.seed for p in params], [p.choice_index for p in params])
        lengths = np.array([len(item.history) for item in self.items], dtype=np.int64)
        return absorb(requests[self.item], lengths[self.item] + self.offset)

    def settings(self) -> FloatArray:
        """Temperature, top-k, top-p and min-p of the rows: [4, rows]."""
        params = [item.params for item in self.items]
        return np.array([(p.temperature, p.top_k, p.top_p, p.min_p) for p in params], dtype=np.float64).T[:, self.item]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The ids that survive truncation in some rows, and their logits up to a constant per row.

    `logits` [n, width] has -inf where an id does not survive; the largest of each row is 0. `ids` [n, width] are in any
    order; None: all ids of the vocabulary, ascending.
    """

    rows: Int64Array
    ids: Tensor | None
    logits: Tensor

    def log_probabilities(self) -> Tensor:
        """Log p, float64 [n, width]."""
        return self.logits.double().log_softmax(-1)

    def locate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of `tokens` [n, m], and whether they are among the candidates at all (else the column is any)."""
        if self.ids is None:
            columns = tokens.clamp(0, self.logits.shape[1] - 1)
            return columns, columns == tokens
        ids, order = self.ids.sort(-1)
        places = torch.searchsorted(ids, tokens).clamp_(max=ids.shape[1] - 1)
        return order.gather(1, places), ids.gather(1, places) == tokens

    def tokens(self, columns: Tensor) -> Tensor:
        """The ids in `columns` [n, m]."""
        return columns if self.ids is None else self.ids.gather(1, columns)

    def noise_ids(self) -> Tensor:
        """The ids as [n or 1, width]."""
        if self.ids is None:
            return torch.arange(self.logits.shape[1], device=self.logits.device)[None]
        return self.ids

    def parts(self) -> Iterator[Candidates]:
        """The same rows in pieces small enough for float64 work."""
        size = _PART_SIZE.get(self.logits.device.type, 1 << 20) // self.logits.shape[1]
        for part in _split(np.arange(len(self.rows)), size):
            piece = slice(part[0], part[-1] + 1)
            yield Candidates(self.rows[piece], None if self.ids is None else self.ids[piece], self.logits[piece])


def adjusted(logits: Tensor, rows: Rows, vocabulary_size: int) -> Tensor:
    """Logits [rows, vocabulary_size] after mask, bias and penalties; a view of `logits` where there are none.

    Raises EngineError where a row has no finite largest value.
    """
    logits = logits[:, :vocabulary_size]
    _check(logits, rows)
    params = [item.params for item in rows.items]
    biased, penalised = any(p.logit_bias for p in params), any(p.penalised for p in params)
    if not (biased or penalised):
        return logits
    logits = logits.to(torch.float32, copy=True)
    if biased:
        _bias(logits, rows)
    if penalised:
        _penalise(logits, rows)
    return logits


def candidates(logits: Tensor, rows: Rows, which: Int64Array) -> Iterator[Candidates]:
    """What survives temperature and truncation in the rows `which` (ascending) of adjusted logits [rows, V].

    Each of the rows appears once, in one of the few groups yielded.
    """
    size = logits.shape[1]
    settings = rows.settings()[:, which]
    settings[1, settings[1] >= size] = 0.0
    _, top_k, top_p, min_p = settings
    pending = (top_k > 0.0) | (top_p < 1.0) | (min_p > 0.0)
    if not pending.all():
        whole = np.flatnonzero(~pending)
        yield Candidates(which[whole], None, _scaled(_pick(logits, which[whole]), settings[0, whole]))
    for width in (*(width for width in _WIDTHS if width < size), size):
        fitting = np.flatnonzero(pending & ((top_k < width) | (width == size)))
        for some in _split(fitting, _MOST_ELEMENTS // width):
            ids, survivors, done = _truncated(_pick(logits, which[some]), settings[:, some], width)
            pending[some] = ~done
            if done.any():
                index = np.flatnonzero(done)
                yield Candidates(which[some[index]], _pick(ids, index), _pick(survivors, index))


def _split(rows: Int64Array, size: int) -> list[Int64Array]:
    """`rows` in pieces of `size`, of one row at least; no piece where there are no rows."""
    return [rows[start : start + max(1, size)] for start in range(0, len(rows), max(1, size))]


def _truncated(logits: Tensor, settings: FloatArray, width: int) -> tuple[Tensor, Tensor, BoolArray]:
    """Top-k, top-p and min-p among the `width` most likely ids of each row.

    `settings` are those of the rows, [4, n]. Returns ids [n, width], logits float64 [n, width] and whether these ids were
    enough to tell [n]: a row is complete where all ids as likely as its least likely survivor are among them.
    """
    temperature, top_k, top_p, min_p = settings
    by_k, by_p, by_min = top_k > 0.0, top_p < 1.0, min_p > 0.0
    values, ids = _most_likely(logits, width, break_ties=bool(by_p.any()))
    values = values.double()
    scaled = (values - values[:, :1]) / _column(np.maximum(temperature, _SMALLEST_TEMPERATURE), logits)
    keep, kth = values > -torch.inf, values.new_full((1, 1), -torch.inf)
    if by_k.any():
        index = torch.from_numpy(np.clip(top_k, 1, width).astype(np.int64) - 1).to(logits.device)
        kth = values.gather(1, index[:, None]).masked_fill_(_column(~by_k, logits), -torch.inf)
        # Ids tied with the k-th all survive, as in transformers and vLLM.
        keep &= values >= kth
    if by_p.any():
        mass = scaled.exp().mul_(keep)
        up_to = mass.cumsum(-1)
        total = up_to[:, -1:].clone()  # the sums are changed in place below
        if (open_ended := by_p & ~by_k).any():
            total = torch.where(_column(by_k, logits), total, _total_mass(logits, temperature, open_ended))
        keep &= up_to.sub_(mass) < total * _column(np.where(by_p, top_p, np.inf), logits)
    if by_min.any():
        keep &= scaled >= _column(min_p, logits).log_()
    keep[:, 0] = True
    survivors = scaled.masked_fill_(~keep, -torch.inf)
    if width == logits.shape[1]:
        return ids, survivors, np.ones(len(ids), dtype=np.bool_)
    floor = values[:, -1:]
    cut_short = (keep & (values == floor)).any(-1, keepdim=True) | ((kth == floor) & (floor > -torch.inf))
    return ids, survivors, ~cut_short[:, 0].cpu().numpy()


def _most_likely(logits: Tensor, width: int, *, break_ties: bool) -> tuple[Tensor, Tensor]:
    """The `width` largest logits of each row with their ids, the largest first.

    With `break_ties` lower ids come before higher ones of the same logit; else their order is any.
    """
    if width == logits.shape[1]:
        values, ids = logits.sort(stable=True, descending=True)
        return values, ids
    values, ids = logits.topk(width)
    if break_ties:
        ids = ids.sort(-1).values
        values, order = logits.gather(1, ids).sort(stable=True, descending=True)
        ids = ids.gather(1, order)
    return values, ids


def _total_mass(logits: Tensor, temperature: FloatArray, which: BoolArray) -> Tensor:
    """Sum of exp(scaled logits) over the vocabulary, [n, 1]; 1 in rows that are not asked for.

    Through softmax, which takes each row by itself: a plain sum may be split otherwise when a row is alone.
    """
    total = logits.new_ones((len(logits), 1), dtype=torch.float64)
    index = np.flatnonzero(which)
    share = _scaled(_pick(logits, index), temperature[index]).softmax(-1).amax(-1, keepdim=True)
    total[torch.from_numpy(index).to(logits.device)] = share.double().reciprocal()
    return total


def _scaled(logits: Tensor, temperature: FloatArray) -> Tensor:
    """Logits over temperature in float32, shifted so that the largest of each row is 0: no temperature overflows."""
    logits = logits.float()
    divisor = _column(np.maximum(temperature, _SMALLEST_FLOAT32), logits).float()
    return (logits - logits.amax(-1, keepdim=True)).div_(divisor)


def _column(numbers: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    """A number per row as a column [n, 1] on the device of `like`."""
    return torch.from_numpy(numbers).to(like.device)[:, None]


def _pick(logits: Tensor, which: Int64Array) -> Tensor:
    """The rows `which` (ascending), without a copy when they are all."""
    return logits if len(which) == len(logits) else logits[torch.from_numpy(which).to(logits.device)]


def _check(logits: Tensor, rows: Rows) -> None:
    """Raise EngineError naming the first row whose largest logit is NaN or infinite."""
    for row, largest in enumerate(logits.amax(-1).tolist()):
        if not isfinite(largest):
            raise EngineError(
                f"the largest logit of row {row} (request {rows.item[row]} of the batch, after {rows.offset[row]} drafted "
                f"tokens) is {largest}: the model overflowed, or its weights are damaged"
            )


@dataclass(frozen=True, slots=True)
class _Edits:
    """Entries of the logits to change, flat arrays of one length."""

    row: Int64Array
    ids: Int64Array
    seen: BoolArray
    """Whether the id occurs in prompt or output before the row."""
    count: Int64Array
    """How often it occurs in the output."""
    params: SamplingParams


def _bias(logits: Tensor, rows: Rows) -> None:
    """Add the logit biases in place; ids outside the vocabulary are left out."""
    params = [item.params.logit_bias for item in rows.items]
    entries = [(row, *entry) for row, item in enumerate(rows.item.tolist()) for entry in params[item]]
    entries = [entry for entry in entries if 0 <= entry[1] < logits.shape[1]]
    if entries:
        row, ids, values = zip(*entries, strict=True)
        index = torch.tensor([row, ids], device=logits.device)
        logits.index_put_((index[0], index[1]), torch.tensor(values, device=logits.device), accumulate=True)


def _edits(item: SamplingItem, first_row: int, offsets: Int64Array, size: int) -> _Edits:
    """What penalties look at, in all rows of one item."""
    history = np.asarray(item.history, dtype=np.int64)
    drafted = np.array([drafted.token for drafted in item.draft], dtype=np.int64)
    ids, index = np.unique(np.concatenate([history, drafted]), return_inverse=True)
    num_ids, length = len(ids), len(history)
    seen = np.bincount(index[:length], minlength=num_ids)
    output = np.bincount(index[item.num_prompt_tokens : length], minlength=num_ids)
    so_far = np.zeros((len(drafted) + 1, num_ids), dtype=np.int64)
    so_far[np.arange(1, len(drafted) + 1), index[length:]] = 1
    so_far = so_far.cumsum(0)[offsets]
    row = np.repeat(np.arange(first_row, first_row + len(offsets)), num_ids)
    known = np.tile((ids >= 0) & (ids < size), len(offsets))
    return _Edits(
        row[known],
        np.tile(ids, len(offsets))[known],
        (seen + so_far > 0).ravel()[known],
        (output + so_far).ravel()[known],
        item.params,
    )


def _penalise(logits: Tensor, rows: Rows) -> None:
    """Apply repetition, frequency and presence penalties in place.

    Repetition as Keskar et al. (CTRL, 2019) and transformers: positive logits are divided by it, negative multiplied.
    """
    firsts = np.searchsorted(rows.item, np.arange(len(rows.items) + 1))
    edits = [
        _edits(item, int(start), rows.offset[start:end], logits.shape[1])
        for item, start, end in zip(rows.items, firsts, firsts[1:], strict=False)
        if item.params.penalised
    ]

    def flat(part: Callable[[_Edits], npt.NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.concatenate([part(edit) for edit in edits])).to(logits.device)

    def setting(name: str) -> Tensor:
        return flat(lambda edit: np.full(len(edit.row), getattr(edit.params, name), dtype=np.float32))

    index = flat(lambda edit: edit.row), flat(lambda edit: edit.ids)
    count = flat(lambda edit: edit.count)
    before, repetition = logits[index], setting("repetition_penalty")
    repeated = torch.where(before > 0.0, before / repetition, before * repetition)
    after = torch.where(flat(lambda edit: edit.seen), repeated, before)
    after -= setting("frequency_penalty") * count + setting("presence_penalty") * (count > 0)
    logits.index_put_(index, after)
