"""A causal LM driven by packed ragged batches: prefill chunks, verification and decoding mix in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wisp.engines.packed.attention import NAME, AttentionContext, BatchAttention, attending
from wisp.engines.packed.batch import RaggedBatch, Segment, pack
from wisp.engines.packed.kv import KVPool, KVSequence
from wisp.errors import EngineError
from wisp.types import TokenId


class PackedModel:
    """A transformers model and the KV pool of its sequences.

    `model` must already attend through `wisp_attention` (see `adopt`). The pool lives as long as this object.
    """

    def __init__(
        self, model: Any, pool: KVPool, *, batch_attention: BatchAttention | None = None, batch_invariant: bool = False
    ) -> None:
        self.model = model
        self.pool = pool
        self.batch_attention = batch_attention
        self.batch_invariant = batch_invariant
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Compute all segments' tokens and extend their sequences by them.

        Returns the logits asked for, float32 [sum of num_logits, embedding size], in the order of the segments. Raises
        PoolFull before anything is computed; on any error the sequences keep the length they had.
        """
        growth = [(segment.sequence, segment.sequence.length + len(segment.tokens)) for segment in segments]
        for sequence, length in growth:
            self.pool.reserve(sequence, length)
        batch = pack(segments, self.device, self.dtype, one_row=self.batch_invariant)
        logits = self.run(batch)
        for sequence, length in growth:
            sequence.length = length
        return logits

    @torch.inference_mode()
    def run(self, batch: RaggedBatch) -> Tensor:
        """The forward pass itself; `forward` keeps the books."""
        try:
            with attending(AttentionContext(batch, self.pool, self.batch_attention)):
                output = self.model(
                    input_ids=batch.token_ids,
                    position_ids=batch.positions,
                    use_cache=False,
                    logits_to_keep=batch.logit_rows,
                )
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise EngineError(f"the forward pass failed on {batch.positions.shape[1]} tokens: {error}") from error
        logits: Tensor = output.logits[0]
        if len(logits) != len(batch.logit_rows):  # some models ignore which rows are wanted
            logits = logits[batch.logit_rows]
        return logits.float()

    def layers_of(self, tokens: Sequence[TokenId]) -> list[tuple[int, int | None]]:
        """Which layers attend, in order, and with which sliding windows, on a forward pass over `tokens`."""
        sequence = KVSequence()
        self.pool.reserve(sequence, len(tokens))
        try:
            batch = pack([Segment(sequence, tokens, 1)], self.device, self.dtype, one_row=False)
            self.run(batch)
        finally:
            self.pool.truncate(sequence, 0)
        return batch.layers_seen

    def truncate(self, sequence: KVSequence, length: int) -> None:
        """Roll `sequence` back to `length` tokens; 0 frees it."""
        self.pool.truncate(sequence, length)


def adopt(model: Any) -> None:
    """Make a loaded transformers model attend through `wisp_attention`."""
    model.eval()
    model.requires_grad_(False)
    model.set_attn_implementation(NAME)
