"""How much memory a model and its KV cache may take, decided before the weights are loaded."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wisp.engines.packed.kv import KVGeometry, LayerGeometry
from wisp.errors import ModelTooLarge

GIB = 1 << 30
_MINIMAL_TOKENS = 2048
"""A KV pool is useful from one sequence of so many tokens on."""
_KV_SHARE = {"cpu": 0.5, "cuda": 0.85}
"""Of the memory that the weights leave: the rest is for activations and others."""
_KV_CAP_CPU = 8 * GIB


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the weights and the KV pool take, in bytes."""

    weights: int
    kv: int


def plan(
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    context_length: int,
    *,
    max_sequences: int,
    kv_gib: float | None = None,
    memory_gib: float | None = None,
) -> MemoryPlan:
    """Share memory between weights and KV; raises ModelTooLarge when they don't fit.

    `memory_gib`: the whole budget, default what is free now; `kv_gib`: the KV pool's, default half (CPU, at most 8 GiB)
    or 85 % (CUDA) of what the weights leave.
    """
    budget = available_bytes(device) if memory_gib is None else int(memory_gib * GIB)
    weights = weight_bytes(config, dtype)
    per_token = expected_geometry(config, dtype).bytes_per_token
    minimal = min(context_length, _MINIMAL_TOKENS) * per_token
    wanted = minimal if kv_gib is None else max(minimal, int(kv_gib * GIB))
    if weights + wanted > budget:
        raise ModelTooLarge(
            f"{config.model_type}: the weights take {weights / GIB:.2f} GiB in {dtype} and the KV cache at least "
            f"{wanted / GIB:.2f} GiB, but {budget / GIB:.2f} GiB are free on {device}: use a smaller model, another "
            "dtype or a smaller KV cache"
        )
    if kv_gib is not None:
        return MemoryPlan(weights, int(kv_gib * GIB))
    share = int((budget - weights) * _KV_SHARE.get(device.type, 0.5))
    cap = _KV_CAP_CPU if device.type == "cpu" else share
    return MemoryPlan(weights, max(minimal, min(share, cap, max_sequences * context_length * per_token)))


def weight_bytes(config: Any, dtype: torch.dtype) -> int:
    """What the parameters of a model of this configuration take, tied ones counted once; nothing is allocated."""
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(copy.deepcopy(config), dtype=dtype)
    return sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())


def expected_geometry(config: Any, dtype: torch.dtype) -> KVGeometry:
    """The KV cache that a configuration leads one to expect; a loaded model is asked for its own."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    key_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    if (latent := getattr(text, "qk_nope_head_dim", None)) is not None:
        key_dim = latent + text.qk_rope_head_dim
    layer = LayerGeometry(
        getattr(text, "num_key_value_heads", None) or heads, key_dim, getattr(text, "v_head_dim", None) or key_dim
    )
    return KVGeometry((layer,) * text.num_hidden_layers, dtype)


def available_bytes(device: torch.device) -> int:
    """Free memory of a device now, the limits of a container included."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _free_system_bytes()
    limit, used = (_read_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None:
        reclaimable = _read_field("/sys/fs/cgroup/memory.stat", "inactive_file ")
        free = min(free, limit - used + reclaimable)
    return max(0, free)


def _free_system_bytes() -> int:
    if free := _read_field("/proc/meminfo", "MemAvailable:"):
        return free * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _read_field(path: str, name: str) -> int:
    """The number behind `name` in a file of one field a line; 0 where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.removeprefix(name).split()[0]) for line in lines if line.startswith(name)), 0)


def _read_number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
