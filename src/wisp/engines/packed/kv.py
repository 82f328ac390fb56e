"""What a KV pool is: sequences of cached keys and values that live across steps, in one of two memory layouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from wisp.engines.packed.batch import RaggedBatch
from wisp.errors import EngineError


class PoolFull(EngineError):
    """The KV pool has no room for what a step needs."""


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """The shape of one layer's keys and values, per token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_elements(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """The shape of a model's KV cache."""

    layers: tuple[LayerGeometry, ...]
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        return sum(layer.num_elements for layer in self.layers) * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class KVSequence:
    """The cached prefix of one token sequence; rollback is `KVPool.truncate`."""

    length: int = 0
    """Tokens whose keys and values are valid."""
    reserved: int = 0
    """Tokens of the pool's capacity that it holds, a multiple of the page."""
    blocks: list[int] = field(default_factory=list)
    """Where they lie: one slab, or pages."""


class KVPool(Protocol):
    """Keys and values of many sequences; none of its methods is thread-safe."""

    @property
    def page_tokens(self) -> int:
        """Granularity in which capacity is handed out."""
        ...

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit, all sequences together."""
        ...

    @property
    def used_tokens(self) -> int:
        """Tokens reserved now."""
        ...

    def fits(self, growth: Iterable[tuple[KVSequence, int]]) -> bool:
        """Whether every sequence can grow to its new length, all of them together."""
        ...

    def reserve(self, sequence: KVSequence, length: int) -> None:
        """Hold room for `length` tokens; raises PoolFull."""
        ...

    def truncate(self, sequence: KVSequence, length: int) -> None:
        """Forget all but the first `length` tokens (all of them are forgotten and freed at 0)."""
        ...

    def copy(self, source: KVSequence, target: KVSequence, length: int) -> None:
        """Make the first `length` tokens of `source` those of the empty sequence `target`; raises PoolFull."""
        ...

    def write(self, layer: int, key: Tensor, value: Tensor, batch: RaggedBatch) -> None:
        """Store the new tokens' key [num_kv_heads, T, key_dim] and value [num_kv_heads, T, value_dim]."""
        ...

    def read(self, layer: int, batch: RaggedBatch, index: int, start: int) -> tuple[Tensor, Tensor]:
        """Key and value [num_kv_heads, length - start, dim] of the batch's span `index`, from position `start` on."""
        ...


def pages(num_tokens: int, page_tokens: int) -> int:
    """How many pages hold `num_tokens`."""
    return -(-num_tokens // page_tokens)
