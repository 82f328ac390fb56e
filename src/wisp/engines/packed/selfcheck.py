"""The load-time check that packed verification reproduces a model's own logits.

Attention can go wrong silently: architectures that mix in recurrent layers, chunked attention or masks of their own
accept packed batches and return wrong numbers. So no model is served before its packed, chunked, ragged and rolled
back logits agree with a plain forward pass of the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wisp.engines.packed.batch import Segment
from wisp.engines.packed.kv import KVSequence
from wisp.engines.packed.model import PackedModel
from wisp.errors import EngineError, UnsupportedModel
from wisp.types import TokenId

TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
"""Root mean square error of the logits over their standard deviation."""
_LENGTHS = (72, 41, 23)
_LONGEST_WINDOW = 512  # a longer sliding window is checked by what the layers ask for, not by numbers
_PAST_WINDOW = 24
_CHUNK, _WRONG = 16, 4
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_SPARSE_ATTENTION = ("attention_chunk_size", "index_topk", "keep_window_size")
"""Settings of attention that leaves keys out only in contexts longer than the ones that are tried out."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Random token sequences and a plain forward pass over each."""

    sequences: tuple[tuple[TokenId, ...], ...]
    logits: tuple[Tensor, ...]
    """float32 [tokens, embedding size] each."""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.sequences))


@torch.inference_mode()
def reference(model: Any, vocabulary_size: int, context_length: int) -> Reference:
    """Plain logits of `model`, which attends as transformers' eager implementation does."""
    rng = np.random.default_rng(0)
    lengths = _lengths(model.config.get_text_config(), context_length)
    sequences = tuple(tuple(rng.integers(0, vocabulary_size, length).tolist()) for length in lengths)
    try:
        model.set_attn_implementation("eager")
        logits = tuple(
            model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0].float()
            for tokens in sequences
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModel(f"{name(model)} cannot run a plain forward pass: {error}") from error
    return Reference(sequences, logits)


def check_configuration(config: Any) -> None:
    """Raise UnsupportedModel for layers that are known not to fit packed batches (recurrent, convolution, chunked)."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    if unknown := set(kinds) - _LAYER_TYPES:
        raise UnsupportedModel(
            f"the model type {config.model_type} is not supported: it has layers of the kind {', '.join(sorted(unknown))}"
        )
    if sparse := [key for key in _SPARSE_ATTENTION if getattr(config.get_text_config(), key, None)]:
        raise UnsupportedModel(
            f"the model type {config.model_type} is not supported: its attention is sparse ({', '.join(sparse)})"
        )


def check(packed: PackedModel, expected: Reference) -> None:
    """Raise UnsupportedModel, naming the architecture, unless `packed` reproduces the reference."""
    try:
        _check_windows(packed, expected)
        error = relative_error(packed, expected)
    except (EngineError, AttributeError, NotImplementedError) as failure:
        raise UnsupportedModel(f"{name(packed.model)} is not supported: {failure}") from failure
    tolerance = TOLERANCES.get(packed.dtype, TOLERANCES[torch.bfloat16])
    if not error <= tolerance:
        raise UnsupportedModel(
            f"{name(packed.model)} is not supported: packed verification does not reproduce its logits "
            f"(relative error {error:.2g}, at most {tolerance:g} in {packed.dtype} is rounding)"
        )


def relative_error(packed: PackedModel, expected: Reference) -> float:
    """Largest RMS error of any step's logits over their standard deviation, over ragged chunks with rollback."""
    rng = np.random.default_rng(1)
    sequences = [KVSequence() for _ in expected.sequences]
    worst = 0.0
    try:
        while unfinished := [i for i, s in enumerate(sequences) if s.length < len(expected.sequences[i])]:
            chunks = [_next_chunk(expected.sequences[i], sequences[i].length, rng) for i in unfinished]
            segments = [
                Segment(sequences[i], right + wrong, len(right + wrong))
                for i, (right, wrong) in zip(unfinished, chunks, strict=True)
            ]
            logits = packed.forward(segments)
            parts = torch.split(logits, [segment.num_logits for segment in segments])
            for i, (right, wrong), got in zip(unfinished, chunks, parts, strict=True):
                end = sequences[i].length - len(wrong)
                want = expected.logits[i][end - len(right) : end]
                worst = max(worst, _rms(got[: len(right)] - want) / max(float(want.std()), 1e-9))
                packed.truncate(sequences[i], end)
    finally:
        for sequence in sequences:
            packed.truncate(sequence, 0)
    return worst


def _next_chunk(tokens: Sequence[TokenId], start: int, rng: np.random.Generator) -> tuple[list[TokenId], list[TokenId]]:
    """The next right tokens, and some wrong ones that will be rolled back."""
    right = list(tokens[start : start + int(rng.integers(1, _CHUNK + 1))])
    num_wrong = min(int(rng.integers(0, _WRONG + 1)), len(tokens) - start - len(right))
    return right, [int(token) for token in rng.permutation(tokens)[:num_wrong]]


def _check_windows(packed: PackedModel, expected: Reference) -> None:
    """Every layer must attend with the window that the configuration names, where it is too long to be tried out."""
    config, label = packed.model.config.get_text_config(), name(packed.model)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if window is None or window <= _LONGEST_WINDOW:
        return
    for layer, seen_window in packed.layers_of(expected.sequences[0][:2]):
        wanted = None if kinds is not None and kinds[layer] == "full_attention" else window
        if seen_window != wanted:
            raise UnsupportedModel(
                f"{label} is not supported: layer {layer} attends with the window {seen_window}, not {wanted}"
            )


def _lengths(config: Any, context_length: int) -> list[int]:
    """Lengths of the sequences to check: the first one longer than a sliding window that is not too long."""
    window = getattr(config, "sliding_window", None)
    first, *others = _LENGTHS
    if window is not None and window <= _LONGEST_WINDOW:
        first = max(first, window + _PAST_WINDOW)
    return [min(length, context_length) for length in (first, *others)]


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def name(model: Any) -> str:
    """How messages call a model."""
    return f"{type(model).__name__} (model type {model.config.model_type})"
