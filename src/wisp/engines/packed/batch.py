"""One packed batch: the new tokens of all sequences in one row, and where each sequence's begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wisp.types import TokenId

if TYPE_CHECKING:
    from wisp.engines.packed.kv import KVSequence


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of one sequence, which follow what it has cached."""

    sequence: KVSequence
    tokens: Sequence[TokenId]
    num_logits: int
    """Of how many of the tokens, counted from the last, the logits are wanted."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where the new tokens of one sequence lie in the batch."""

    sequence: KVSequence
    start: int
    end: int
    num_cached: int

    @property
    def num_new(self) -> int:
        return self.end - self.start

    @property
    def length(self) -> int:
        """Cached and new tokens."""
        return self.num_cached + self.end - self.start


@dataclass(slots=True, eq=False)
class RaggedBatch:
    """T new tokens of several sequences, packed; what the layers share is built once, on first use, in `memo`."""

    spans: tuple[Span, ...]
    token_ids: Tensor
    """[1, T]."""
    positions: Tensor
    """[1, T], within each sequence."""
    logit_rows: Tensor
    """Of the T tokens, those whose logits are wanted, in the order of the segments."""
    dtype: torch.dtype
    """Of the model's activations."""
    one_row_attention: bool = False
    """Attend with one query row per call: the rounding of a row then doesn't depend on its neighbours."""
    memo: dict[object, Tensor] = field(default_factory=dict)
    layers_seen: list[tuple[int, int | None]] = field(default_factory=list)
    """Which layers attended, with their windows: read by the self-check."""

    @property
    def device(self) -> torch.device:
        return self.token_ids.device


def pack(segments: Sequence[Segment], device: torch.device, dtype: torch.dtype, *, one_row: bool) -> RaggedBatch:
    """Lay `segments` out in one row of T tokens; each segment has at least one token."""
    num_new = np.fromiter((len(segment.tokens) for segment in segments), np.int64, len(segments))
    num_cached = np.fromiter((segment.sequence.length for segment in segments), np.int64, len(segments))
    num_logits = np.fromiter((segment.num_logits for segment in segments), np.int64, len(segments))
    ends = np.cumsum(num_new)
    starts = ends - num_new
    tokens = np.fromiter(chain.from_iterable(segment.tokens for segment in segments), np.int64, int(ends[-1]))
    positions = np.arange(len(tokens)) + np.repeat(num_cached - starts, num_new)
    first_logits = np.cumsum(num_logits) - num_logits
    rows = np.arange(num_logits.sum()) + np.repeat(ends - num_logits - first_logits, num_logits)
    both = torch.from_numpy(np.concatenate([tokens, positions, rows])).to(device, non_blocking=True)
    token_ids, position_ids, logit_rows = torch.split(both, [len(tokens), len(tokens), len(rows)])
    spans = tuple(
        Span(segment.sequence, start, end, cached)
        for segment, start, end, cached in zip(
            segments, starts.tolist(), ends.tolist(), num_cached.tolist(), strict=True
        )
    )
    return RaggedBatch(spans, token_ids[None], position_ids[None], logit_rows, dtype, one_row_attention=one_row)


def causal_mask(batch: RaggedBatch, index: int, window: int | None, start: int, repeats: int = 1) -> Tensor | None:
    """What the new tokens of span `index` may not see of the positions from `start` on; None: they see all of them.

    Additive, [repeats * num_new, length - start], 0 or -inf. A token at position p sees those from p - window + 1 to p.
    """
    span = batch.spans[index]
    limited = window is not None and span.length - start > window
    if span.num_new == 1 and not limited:
        return None
    key = ("mask", index, window if limited else None, start, repeats)
    mask = batch.memo.get(key)
    if mask is None:
        mask = batch.memo[key] = _mask(span, window if limited else None, start, batch).repeat(repeats, 1)
    return mask


def _mask(span: Span, window: int | None, start: int, batch: RaggedBatch) -> Tensor:
    rows = torch.arange(span.num_cached, span.length, device=batch.device)[:, None]
    columns = torch.arange(start, span.length, device=batch.device)[None]
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    return torch.zeros(hidden.shape, dtype=batch.dtype, device=batch.device).masked_fill_(hidden, -torch.inf)
