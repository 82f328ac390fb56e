"""The KV pool for GPUs: pages of a fixed number of tokens, handed out from a free list.

Layout per layer: [page, page_tokens, num_kv_heads, head_dim], as paged FlashAttention reads it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from wisp.engines.packed.batch import RaggedBatch
from wisp.engines.packed.kv import KVGeometry, KVSequence, PoolFull, pages

PAGE_TOKENS = 256
"""FlashAttention 2 reads pages of multiples of 256 tokens."""


class PagedPool:
    """Pages on any device; see the module's docstring and KVPool."""

    def __init__(
        self, geometry: KVGeometry, capacity_tokens: int, device: torch.device, page_tokens: int = PAGE_TOKENS
    ) -> None:
        num_pages = max(1, capacity_tokens // page_tokens)
        self.page_tokens = page_tokens
        self.capacity_tokens = num_pages * page_tokens
        self._free_pages = list(range(num_pages - 1, -1, -1))
        self._layers = [
            (
                torch.empty((*shape, layer.key_dim), dtype=geometry.dtype, device=device),
                torch.empty((*shape, layer.value_dim), dtype=geometry.dtype, device=device),
            )
            for layer in geometry.layers
            for shape in [(num_pages, page_tokens, layer.num_kv_heads)]
        ]

    @property
    def used_tokens(self) -> int:
        return self.capacity_tokens - len(self._free_pages) * self.page_tokens

    def fits(self, growth: Iterable[tuple[KVSequence, int]]) -> bool:
        return sum(self._missing(sequence, length) for sequence, length in growth) <= len(self._free_pages)

    def reserve(self, sequence: KVSequence, length: int) -> None:
        missing = self._missing(sequence, length)
        if missing > len(self._free_pages):
            raise PoolFull(
                f"the KV pool is full: {self.used_tokens} of {self.capacity_tokens} tokens are taken, "
                f"a sequence needs {length} tokens"
            )
        sequence.blocks.extend(self._free_pages.pop() for _ in range(missing))
        sequence.reserved = len(sequence.blocks) * self.page_tokens

    def truncate(self, sequence: KVSequence, length: int) -> None:
        if length > sequence.length:
            return
        kept = pages(length, self.page_tokens)
        self._free_pages.extend(reversed(sequence.blocks[kept:]))
        del sequence.blocks[kept:]
        sequence.reserved = kept * self.page_tokens
        sequence.length = length

    def copy(self, source: KVSequence, target: KVSequence, length: int) -> None:
        self.reserve(target, length)
        num_pages = pages(length, self.page_tokens)
        device = self._layers[0][0].device
        origin = torch.tensor(source.blocks[:num_pages], device=device)
        destination = torch.tensor(target.blocks[:num_pages], device=device)
        for layer in self._layers:
            for store in layer:
                store.index_copy_(0, destination, store[origin])
        target.length = length

    def write(self, layer: int, key: Tensor, value: Tensor, batch: RaggedBatch) -> None:
        rows = self._rows(batch)
        for store, new in zip(self._layers[layer], (key, value), strict=True):
            store.flatten(0, 1).index_copy_(0, rows, new.transpose(0, 1))

    def read(self, layer: int, batch: RaggedBatch, index: int, start: int) -> tuple[Tensor, Tensor]:
        end, first = batch.spans[index].length, start // self.page_tokens
        table = self.block_table(batch)[index, first : pages(end, self.page_tokens)]
        offset = first * self.page_tokens
        keys, values = (
            store[table].flatten(0, 1)[start - offset : end - offset].transpose(0, 1) for store in self._layers[layer]
        )
        return keys, values

    def pages_of(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, [page, page_tokens, num_kv_heads, head_dim]."""
        return self._layers[layer]

    def block_table(self, batch: RaggedBatch) -> Tensor:
        """The pages of each sequence of a batch, int32 [sequences, most pages], padded with page 0."""
        table = batch.memo.get("block table")
        if table is None:
            blocks = [span.sequence.blocks for span in batch.spans]
            width = max(len(row) for row in blocks)
            padded = [row + [0] * (width - len(row)) for row in blocks]
            table = batch.memo["block table"] = torch.tensor(padded, dtype=torch.int32, device=batch.device)
        return table

    def _rows(self, batch: RaggedBatch) -> Tensor:
        """Where each new token goes in a layer seen as [page * position, num_kv_heads, head_dim]."""
        rows = batch.memo.get("page rows")
        if rows is None:
            num_new = torch.tensor([span.num_new for span in batch.spans], device=batch.device)
            index = torch.arange(len(batch.spans), device=batch.device).repeat_interleave(
                num_new, output_size=batch.positions.shape[1]
            )
            positions = batch.positions[0]
            page = self.block_table(batch)[index, positions // self.page_tokens].long()
            rows = batch.memo["page rows"] = page * self.page_tokens + positions % self.page_tokens
        return rows

    def _missing(self, sequence: KVSequence, length: int) -> int:
        return max(0, pages(length, self.page_tokens) - len(sequence.blocks))
