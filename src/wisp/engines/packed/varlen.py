"""Paged FlashAttention for a whole batch: `torch.nn.attention.varlen`, on CUDA in bf16 or fp16.

Written from the documentation and not yet run on a GPU. It is selected only after `agrees` has compared it with the
per-sequence attention at start-up; where the two differ, the engine says so in its log and stays with the latter.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from wisp.engines.packed.attention import BatchAttention
from wisp.engines.packed.batch import RaggedBatch
from wisp.engines.packed.kv import KVGeometry
from wisp.engines.packed.paged import PAGE_TOKENS, PagedPool

_MAX_HEAD_DIM = 256
_HEAD_DIM_MULTIPLE = 8


def usable(geometry: KVGeometry, device: torch.device) -> bool:
    """Whether the kernel exists in this torch and takes keys of this shape."""
    if device.type != "cuda" or geometry.dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    if not {"block_table", "seqused_k", "num_splits"} <= inspect.signature(varlen_attn).parameters.keys():
        return False
    return all(
        layer.key_dim == layer.value_dim <= _MAX_HEAD_DIM and layer.key_dim % _HEAD_DIM_MULTIPLE == 0
        for layer in geometry.layers
    )


def paged_attention(pool: PagedPool) -> BatchAttention:
    """One kernel call per layer over the pages of `pool`, whose pages must be a multiple of 256 tokens."""
    if pool.page_tokens % PAGE_TOKENS:
        raise ValueError(f"paged attention needs pages of a multiple of {PAGE_TOKENS} tokens, not {pool.page_tokens}")
    from torch.nn.attention.varlen import varlen_attn

    kernel: Any = varlen_attn

    def attend(query: Tensor, layer: int, batch: RaggedBatch, scale: float, window: int | None) -> Tensor:
        keys, values = pool.pages_of(layer)
        output: Tensor = kernel(
            query[0].transpose(0, 1).contiguous(),
            keys,
            values,
            _query_offsets(batch),
            None,
            max(span.num_new for span in batch.spans),
            max(span.length for span in batch.spans),
            scale=scale,
            # a window of w tokens includes the token itself; the right bound 0 is causal, aligned to the last token
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
            seqused_k=_lengths(batch),
            block_table=pool.block_table(batch),
            num_splits=1,  # automatic splits over pages have returned NaNs
        )
        return output[None]

    return attend


def _query_offsets(batch: RaggedBatch) -> Tensor:
    offsets = batch.memo.get("query offsets")
    if offsets is None:
        values = [0, *(span.end for span in batch.spans)]
        offsets = batch.memo["query offsets"] = torch.tensor(values, dtype=torch.int32, device=batch.device)
    return offsets


def _lengths(batch: RaggedBatch) -> Tensor:
    lengths = batch.memo.get("lengths")
    if lengths is None:
        values = [span.length for span in batch.spans]
        lengths = batch.memo["lengths"] = torch.tensor(values, dtype=torch.int32, device=batch.device)
    return lengths
