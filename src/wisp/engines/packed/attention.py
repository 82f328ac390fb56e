"""Attention over a packed batch, registered with transformers under the name `wisp`.

Each sequence's new tokens attend to its own cached ones; the whole cache is kept and a sliding window is applied when
reading, so that rollback is exact. One call per sequence, or one paged FlashAttention call for the batch (varlen.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import AttentionInterface

from wisp.engines.packed.batch import RaggedBatch, causal_mask
from wisp.engines.packed.kv import KVPool
from wisp.errors import EngineError

NAME = "wisp"
_PACK_ROWS = 64
"""Up to so many new tokens, the query heads of a group are packed into the query dimension."""

BatchAttention = Callable[[Tensor, int, RaggedBatch, float, int | None], Tensor]
"""(query [1, H, T, D], layer, batch, scaling, window) -> [1, T, H, value_dim], keys and values written already."""


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """What the attention function has to know beside its arguments: the batch, and where its KV lies."""

    batch: RaggedBatch
    pool: KVPool
    batch_attention: BatchAttention | None = None


_current: ContextVar[AttentionContext | None] = ContextVar("wisp_attention", default=None)


@contextmanager
def attending(context: AttentionContext) -> Iterator[None]:
    """Attend to `context` within the block; models need not pass anything on for it."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def wisp_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Store the new keys and values, then attend: query [1, H, T, D] -> [1, T, H, value_dim]."""
    layer, context = getattr(module, "layer_idx", None), _current.get()
    if context is None or layer is None:
        raise EngineError(f"{type(module).__name__} cannot attend: its layer or the batch is unknown")
    batch, pool = context.batch, context.pool
    batch.layers_seen.append((layer, sliding_window))
    pool.write(layer, key[0], value[0], batch)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if context.batch_attention is not None and softcap is None and s_aux is None:
        return context.batch_attention(query, layer, batch, scale, sliding_window), None
    output = torch.empty((query.shape[2], query.shape[1], value.shape[-1]), dtype=query.dtype, device=query.device)
    attend = _attend_by_row if batch.one_row_attention else _attend
    groups = (
        1 if attend is _attend_by_row or softcap is not None or s_aux is not None else query.shape[1] // key.shape[1]
    )
    for index, span in enumerate(batch.spans):
        start = 0 if sliding_window is None else max(0, span.num_cached + 1 - sliding_window)
        keys, values = pool.read(layer, batch, index, start)
        mask = causal_mask(batch, index, sliding_window, start, groups if span.num_new <= _PACK_ROWS else 1)
        output[span.start : span.end] = attend(
            query[0, :, span.start : span.end], keys, values, mask, scale, softcap, s_aux
        )
    return output[None], None


AttentionInterface.register(NAME, wisp_attention)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of one sequence: query [H, n, D], keys and values [KV, L, D], mask [n, L] -> [n, H, value_dim].

    Where the heads of a group are packed, the mask is already repeated for each of them: [H / KV * n, L].
    """
    num_heads, num_new, _ = query.shape
    groups = num_heads // keys.shape[0]
    if softcap is not None or sinks is not None:
        return _attend_explicitly(query, keys, values, mask, scale, softcap, sinks)
    if num_new > _PACK_ROWS:
        out = F.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=groups > 1
        )
        return out[0].transpose(0, 1)
    packed = query.reshape(1, keys.shape[0], groups * num_new, query.shape[-1])
    out = F.scaled_dot_product_attention(packed, keys[None], values[None], attn_mask=mask, scale=scale)
    return out.view(num_heads, num_new, -1).transpose(0, 1)


def _attend_explicitly(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same with what no fused kernel offers: soft-capped scores (Gemma 2) and attention sinks (GPT-OSS, [H])."""
    num_heads, num_new, dim = query.shape
    num_kv, length, _ = keys.shape
    scores = torch.matmul(query.reshape(num_kv, -1, dim), keys.transpose(1, 2)).view(num_kv, -1, num_new, length)
    scores = scores.float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        sink = sinks.float().view(num_kv, -1, 1, 1).expand(-1, -1, num_new, 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :length].to(values.dtype)
    out = torch.matmul(weights.reshape(num_kv, -1, length), values)
    return out.view(num_heads, num_new, -1).transpose(0, 1)


def _attend_by_row(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same with one call per new token over exactly the keys it sees, as in one-token decoding."""
    num_new, length = query.shape[1], keys.shape[1]
    rows = []
    for row in range(num_new):
        end = length - num_new + row + 1
        begin = 0 if mask is None else int((mask[row, :end] < 0).sum())
        seen = slice(begin, end)
        rows.append(_attend(query[:, row : row + 1], keys[:, seen], values[:, seen], None, scale, softcap, sinks))
    return torch.cat(rows)
