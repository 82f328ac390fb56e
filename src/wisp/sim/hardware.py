"""How long a batch takes on some hardware, from its composition; never the estimator that is under test.

T(B) = fixed + sqrt((bytes of weights / bandwidth)^2 + (FLOPs of the matmuls / compute)^2)
     + max(bytes of KV read / bandwidth, FLOPs of attention / compute) + per request * |B|
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np

from wisp.errors import ConfigError, FormatError
from wisp.policy.batch_time import BatchShape, BatchTime

KV_BYTES = 2
"""Of a key's or a value's element: KV caches are kept in 16 bits."""
RESERVED_MEMORY = 0.1
"""Of the GPU's memory, for activations and the runtime. Assumed; vLLM's default."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class GPU:
    """A data sheet."""

    memory_bytes: float
    bandwidth: float
    """Bytes per second."""
    flops: float
    """Dense bf16 with fp32 accumulation, per second."""
    host_bandwidth: float
    """PCIe x16, bytes per second, each way."""


GEN_4, GEN_5 = 32e9, 64e9

GPUS: Mapping[str, GPU] = {
    "a100-80gb": GPU(81920 * MIB, 2.039e12, 312e12, GEN_4),
    "h100": GPU(81559 * MIB, 3.35e12, 989e12, GEN_5),
    "h200": GPU(143771 * MIB, 4.8e12, 989e12, GEN_5),
    "l40s": GPU(46068 * MIB, 0.864e12, 362e12, GEN_4),
    "rtx-4090": GPU(24564 * MIB, 1.008e12, 165e12, GEN_4),
    "rtx-pro-6000": GPU(97887 * MIB, 1.792e12, 504e12, GEN_5),
}
"""SXM versions of A100, H100 and H200. Data sheet, nothing is measured; the memory is what the driver reports of it."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a model's config.json that decide what it costs."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary_size: int
    tied: bool = False
    """Whether the head is the embedding's transpose: both are one matrix in memory."""

    @classmethod
    def load(cls, path: Path) -> ModelShape:
        """Read a dense Llama-like model's config.json. Raises FormatError."""
        try:
            return cls.from_config(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise FormatError(f"cannot read the model configuration {path}: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is not the config.json of a dense decoder: {error!r}") from error

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the keys that Hugging Face uses."""
        num_heads = int(config["num_attention_heads"])
        return cls(
            num_layers=int(config["num_hidden_layers"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // num_heads),
            vocabulary_size=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def num_matmul_parameters(self) -> int:
        """Read once per step and multiplied with every position; the head counts, the embedding does not."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + feed_forward) + self.hidden_size * self.vocabulary_size

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * KV_BYTES


MODELS: Mapping[str, ModelShape] = {
    "qwen3-32b": ModelShape(64, 5120, 25600, 64, 8, 128, 151936),
    "qwen3-14b": ModelShape(40, 5120, 17408, 40, 8, 128, 151936),
    "qwen3-0.6b": ModelShape(28, 1024, 3072, 16, 8, 128, 151936, tied=True),
    "qwen3-8b": ModelShape(36, 4096, 12288, 32, 8, 128, 151936),
    "llama-3.1-70b": ModelShape(80, 8192, 28672, 64, 8, 128, 128256),
    "llama-3.1-8b": ModelShape(32, 4096, 14336, 32, 8, 128, 128256),
}
"""From the models' own config.json."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model on a GPU, from data sheets and five coefficients.

    The efficiencies, and the soft corner between reading and computing, are measured, on one pair only: vLLM 0.19 kernels of Qwen3-32B bf16 on an RTX PRO 6000
    (LLMServingSim, commit 5daddb2, MIT): a layer's matmuls take 670 us for 1 token, where reading its weights at the data
    sheet's bandwidth takes 544, and 5,397 us for 2,048, where the FLOPs take 3,963; attention of 2,048 new tokens takes 300 us, where the FLOPs take
    136. For other GPUs they are assumed to
    hold. The fixed and the per-request time are assumed, and so is the host's efficiency.
    """

    gpu: GPU
    model: ModelShape
    weight_bits: int = 16
    """8 or 4: weight-only quantization, the FLOPs stay."""
    bandwidth_efficiency: float = 0.81
    compute_efficiency: float = 0.73
    attention_efficiency: float = 0.48
    """Of the compute, for attention over prompts."""
    fixed_s: float = 0.005
    per_request_s: float = 20e-6
    host_efficiency: float = 0.8
    """Of the data sheet's bandwidth to the host. Assumed."""
    _read_time: float = field(init=False, repr=False, compare=False)
    """Seconds in which a step reads its weights; like those below, worked out once."""
    _matmul_flops: float = field(init=False, repr=False, compare=False)
    """Per position."""
    _attention_flops: float = field(init=False, repr=False, compare=False)
    """Per pair of a position and a token it attends to."""
    _kv_bytes: int = field(init=False, repr=False, compare=False)
    """Per cached token."""
    _bandwidth: float = field(init=False, repr=False, compare=False)
    """Bytes per second that are reached; like the following, FLOPs per second."""
    _matmul_speed: float = field(init=False, repr=False, compare=False)
    _attention_speed: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.weight_bits not in (4, 8, 16):
            raise ConfigError(f"weights have 4, 8 or 16 bits, not {self.weight_bits}")
        if self.kv_capacity_tokens < 1:
            raise ConfigError(
                f"{self.weight_bytes / 1e9:.0f} GB of weights leave no room for a KV cache in "
                f"{self.gpu.memory_bytes / 1e9:.0f} GB: take fewer weight bits, or a larger GPU"
            )
        model = self.model
        derived = {
            "_bandwidth": self.gpu.bandwidth * self.bandwidth_efficiency,
            "_matmul_speed": self.gpu.flops * self.compute_efficiency,
            "_attention_speed": self.gpu.flops * self.attention_efficiency,
            "_read_time": self.read_bytes / (self.gpu.bandwidth * self.bandwidth_efficiency),
            "_matmul_flops": 2.0 * model.num_matmul_parameters,
            "_attention_flops": 4.0 * model.num_layers * model.num_heads * model.head_dim,
            "_kv_bytes": model.kv_bytes_per_token,
        }
        for name, number in derived.items():
            object.__setattr__(self, name, number)

    @property
    def weight_bytes(self) -> float:
        """What lies in memory; a step reads all but the embedding."""
        embedding = 0 if self.model.tied else self.model.vocabulary_size * self.model.hidden_size * 2
        return self.read_bytes + embedding

    @property
    def read_bytes(self) -> float:
        """Weights that a step reads."""
        return self.model.num_matmul_parameters * self.weight_bits / 8

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose keys and values fit beside the weights."""
        room = self.gpu.memory_bytes * (1.0 - RESERVED_MEMORY) - self.weight_bytes
        return int(room / self.model.kv_bytes_per_token)

    @property
    def swap_s_per_token(self) -> float:
        """Seconds in which keys and values of a token come back from the host's memory."""
        return self.model.kv_bytes_per_token / (self.gpu.host_bandwidth * self.host_efficiency)

    def matmul_time(self, num_tokens: int) -> float:
        """Seconds that the matrix products of a step take."""
        return hypot(self._read_time, self._matmul_flops * num_tokens / self._matmul_speed)

    def attention_time(self, num_cached: int, num_pairs: float) -> float:
        """Seconds for attention over `num_cached` tokens in the cache and `num_pairs` (new, attended) pairs."""
        read = self._kv_bytes * num_cached / self._bandwidth
        computed = self._attention_flops * num_pairs / self._attention_speed
        return read if read > computed else computed

    def __call__(self, shape: BatchShape) -> float:
        """Seconds that a batch takes."""
        fixed = self.fixed_s + self.per_request_s * shape.num_requests
        attention = self.attention_time(shape.num_cached, shape.num_attended)
        return fixed + self.matmul_time(shape.num_new) + attention


def noisy(batch_time: BatchTime, ratios: Sequence[float], rng: np.random.Generator) -> BatchTime:
    """The same hardware, each time multiplied by one of `ratios` that is drawn; none: the hardware itself."""
    if not ratios:
        return batch_time
    return lambda shape: batch_time(shape) * ratios[int(rng.integers(len(ratios)))]


@dataclass(frozen=True, slots=True)
class ServerDrafter:
    """A drafter beside the target."""

    batch_time: BatchTime
    kv_capacity_tokens: int
    """What is left of the KV cache beside the drafter's weights."""
    kv_share: float = 0.0
    """What a token takes in the drafter's cache, over what it takes in the target's; 0: that is memory of its own."""


DRAFTER_FIXED_S = 0.001
"""Assumed for one step of a drafter beside the target: within a step, nothing is scheduled, only launched."""


def beside(target: Roofline, drafter: ModelShape, kv_capacity_tokens: int | None = None) -> ServerDrafter:
    """A drafter in 16 bits on the target's GPU, whose weights and caches take of what the target's cache would hold.

    That is `kv_capacity_tokens`, or what is left beside the target's weights. Raises ConfigError.
    """
    alone = Roofline(target.gpu, drafter, fixed_s=DRAFTER_FIXED_S)
    per_token = target.model.kv_bytes_per_token
    capacity = target.kv_capacity_tokens if kv_capacity_tokens is None else kv_capacity_tokens
    room = capacity - int(alone.weight_bytes / per_token)
    return ServerDrafter(alone, max(room, 0), drafter.kv_bytes_per_token / per_token)
