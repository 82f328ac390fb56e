"""The KV pool for CPUs: one contiguous slab per sequence and layer, whose memory is committed on first touch.

Layout per layer: [slot, num_kv_heads, max_length, head_dim], so that attention reads a plain view and the new tokens
of a whole batch are written by one `index_copy_`. On Linux what a sequence frees goes back to the operating system.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from wisp.engines.packed.batch import RaggedBatch
from wisp.engines.packed.kv import KVGeometry, KVSequence, LayerGeometry, PoolFull, pages
from wisp.errors import ModelTooLarge

_OS_PAGE = 4096
_LENGTH_MULTIPLE = 2048  # so that the slab of each head begins on a page of the operating system
_MAX_VIRTUAL_BYTES = 32 << 40
_RELEASE_TOKENS = 1024  # roll back less than this and the memory stays committed


class SlabPool:
    """Slabs on the CPU; see the module's docstring and KVPool."""

    def __init__(self, geometry: KVGeometry, capacity_tokens: int, max_length: int, max_sequences: int) -> None:
        length = -(-max_length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        slot_bytes = geometry.bytes_per_token * length
        num_slots = max(1, min(max_sequences, _MAX_VIRTUAL_BYTES // slot_bytes))
        self.page_tokens = _page_tokens(geometry)
        self.capacity_tokens = max(self.page_tokens, capacity_tokens // self.page_tokens * self.page_tokens)
        self.used_tokens = 0
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._layers = [_slabs(layer, num_slots, length, geometry.dtype) for layer in geometry.layers]

    def fits(self, growth: Iterable[tuple[KVSequence, int]]) -> bool:
        tokens = slots = 0
        for sequence, length in growth:
            tokens += max(0, self._paged(length) - sequence.reserved)
            slots += not sequence.blocks
        return self.used_tokens + tokens <= self.capacity_tokens and slots <= len(self._free_slots)

    def reserve(self, sequence: KVSequence, length: int) -> None:
        if not self.fits([(sequence, length)]):
            raise PoolFull(
                f"the KV pool is full: {self.used_tokens} of {self.capacity_tokens} tokens are taken and "
                f"{len(self._free_slots)} slots are free, a sequence needs {length} tokens"
            )
        if not sequence.blocks:
            sequence.blocks.append(self._free_slots.pop())
        self._account(sequence, max(sequence.reserved, self._paged(length)))

    def truncate(self, sequence: KVSequence, length: int) -> None:
        if not sequence.blocks or length > sequence.length:
            return
        dropped = sequence.reserved - self._paged(length)
        self._account(sequence, self._paged(length))
        sequence.length = length
        if length == 0 or dropped >= _RELEASE_TOKENS:
            for slab in _all_slabs(self._layers):
                slab.release(sequence.blocks[0], self._paged(length))
        if length == 0:
            self._free_slots.append(sequence.blocks.pop())

    def copy(self, source: KVSequence, target: KVSequence, length: int) -> None:
        self.reserve(target, length)
        for slab in _all_slabs(self._layers):
            slab.tensor[target.blocks[0], :, :length] = slab.tensor[source.blocks[0], :, :length]
        target.length = length

    def write(self, layer: int, key: Tensor, value: Tensor, batch: RaggedBatch) -> None:
        for slab, new in zip(self._layers[layer], (key, value), strict=True):
            num_heads, num_tokens, dim = new.shape
            rows = self._rows(batch, num_heads)
            slab.rows.index_copy_(0, rows, new.reshape(num_heads * num_tokens, dim))

    def read(self, layer: int, batch: RaggedBatch, index: int, start: int) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[layer]
        span = batch.spans[index]
        slot, end = span.sequence.blocks[0], span.length
        return keys.tensor[slot, :, start:end], values.tensor[slot, :, start:end]

    def _rows(self, batch: RaggedBatch, num_heads: int) -> Tensor:
        """Where each head's new tokens go in a slab seen as [slot * head * position, dim], head-major."""
        memo_key = ("slab rows", num_heads)
        rows = batch.memo.get(memo_key)
        if rows is None:
            length = self._layers[0][0].tensor.shape[2]
            slots = np.repeat([span.sequence.blocks[0] for span in batch.spans], [span.num_new for span in batch.spans])
            heads = np.arange(num_heads)[:, None]
            indices = (slots * num_heads + heads) * length + batch.positions[0].numpy()
            rows = batch.memo[memo_key] = torch.from_numpy(indices.ravel())
        return rows

    def _paged(self, length: int) -> int:
        return pages(length, self.page_tokens) * self.page_tokens

    def _account(self, sequence: KVSequence, reserved: int) -> None:
        self.used_tokens += reserved - sequence.reserved
        sequence.reserved = reserved


@dataclass(slots=True, eq=False)
class _Slab:
    """Keys or values of one layer: `tensor` [slot, num_kv_heads, max_length, head_dim]."""

    tensor: Tensor
    rows: Tensor
    """The same memory, [slot * num_kv_heads * max_length, head_dim]."""
    memory: mmap.mmap | None

    def release(self, slot: int, length: int) -> None:
        """Give the memory of all but the first `length` tokens of a slot back to the operating system."""
        if self.memory is None:
            return
        _, num_heads, max_length, dim = self.tensor.shape
        token_bytes = dim * self.tensor.itemsize
        head_bytes = max_length * token_bytes
        kept = -(-length * token_bytes // _OS_PAGE) * _OS_PAGE
        begin = slot * num_heads * head_bytes
        if length == 0:
            self.memory.madvise(mmap.MADV_DONTNEED, begin, num_heads * head_bytes)
            return
        for head in range(num_heads):
            self.memory.madvise(mmap.MADV_DONTNEED, begin + head * head_bytes + kept, head_bytes - kept)


def _all_slabs(layers: Iterable[tuple[_Slab, _Slab]]) -> Iterable[_Slab]:
    """Keys and values of all layers."""
    return (slab for layer in layers for slab in layer)


def _page_tokens(geometry: KVGeometry) -> int:
    """How many tokens of the narrowest head share a page of memory."""
    narrowest = min(min(layer.key_dim, layer.value_dim) for layer in geometry.layers)
    return max(1, _OS_PAGE // (narrowest * geometry.dtype.itemsize))


def _slabs(layer: LayerGeometry, num_slots: int, length: int, dtype: torch.dtype) -> tuple[_Slab, _Slab]:
    return (
        _slab((num_slots, layer.num_kv_heads, length, layer.key_dim), dtype),
        _slab((num_slots, layer.num_kv_heads, length, layer.value_dim), dtype),
    )


def _slab(shape: tuple[int, int, int, int], dtype: torch.dtype) -> _Slab:
    memory = _lazy_memory(prod(shape) * dtype.itemsize)
    flat = torch.empty(prod(shape), dtype=dtype) if memory is None else torch.frombuffer(memory, dtype=dtype)
    return _Slab(flat.view(shape), flat.view(-1, shape[-1]), memory)


def _lazy_memory(num_bytes: int) -> mmap.mmap | None:
    """Memory that isn't reserved before it is touched; None where the system offers no such thing to Python."""
    if sys.platform != "linux":
        return None
    no_reserve = 0x4000
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    except OSError as error:
        raise ModelTooLarge(
            f"the system refuses {num_bytes / (1 << 30):.0f} GiB of address space for the KV cache ({error}): lower "
            "the number of sequences or the context length"
        ) from error
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would commit 2 MiB for one token
    return memory
