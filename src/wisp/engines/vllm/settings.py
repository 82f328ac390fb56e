"""What vLLM is told: an engine that computes the positions it is given and decides nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wisp.config import ModelConfig

_MEMORY_SHARE = 0.9
"""Of a GPU's memory, where nothing else is asked for: vLLM's own default."""
_CPU_KV_SHARE = 0.25
"""Of the free memory, for the KV cache on a CPU."""
_CPU_PAGE_TOKENS = 32
"""vLLM's attention on a CPU wants multiples of 32; its own default, 128, leaves much of a page empty."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How vLLM loads a model, and the largest step it has to compute."""

    model: str
    """Folder or hub name."""
    dtype: str = "auto"
    """auto: float32 on a CPU, the checkpoint's own elsewhere."""
    device: str = "auto"
    """cpu, cuda; auto: what the installed vLLM was built for."""
    threads: int = 1
    """Of each worker, on a CPU."""
    memory_gib: float | None = None
    """For weights and KV cache; None: nine tenths of the GPU."""
    kv_gib: float | None = None
    """For the KV cache; None: what `memory_gib` leaves, on a CPU a quarter of what is free."""
    max_context: int | None = None
    tensor_parallel: int = 1
    """GPUs (on a CPU: processes) that the model is split over."""
    quantization: str | None = None
    """vLLM's name of a method; None: what the checkpoint says."""
    batch_invariant: bool = False
    graphs: bool = True
    """CUDA graphs; on a CPU there are none."""
    max_requests: int = 64
    """Members of one step."""
    max_new_tokens: int = 2048
    """Positions of one step."""
    max_draft_tokens: int = 32
    """Longest draft; of a longer one the rest is not verified."""

    @classmethod
    def of(cls, config: ModelConfig, **limits: Any) -> VllmSettings:
        """What a server is configured to load."""
        return cls(
            model=config.model,
            dtype=config.dtype,
            device=config.device,
            threads=config.threads,
            memory_gib=config.memory_gib,
            kv_gib=config.kv_gib,
            max_context=config.max_context,
            tensor_parallel=config.tensor_parallel,
            quantization=config.quantization,
            batch_invariant=config.batch_invariant,
            **limits,
        )


def environment(settings: VllmSettings) -> dict[str, str]:
    """Environment variables of vLLM's process; they have to be set before it is imported."""
    variables = {
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # drafts from outside exist on the V1 runner only
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one GPU: model and KV blocks in one process, this one
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # a server shares its cores with the loop that feeds it
        "OMP_NUM_THREADS": str(settings.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.batch_invariant:
        variables["VLLM_BATCH_INVARIANT"] = "1"
    return variables


def engine_arguments(settings: VllmSettings, *, on_cpu: bool, free_bytes: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs; `free_bytes` of memory are free."""
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": "float32" if settings.dtype == "auto" and on_cpu else settings.dtype,
        "max_model_len": settings.max_context or -1,  # -1: as much of the model's own as the cache holds
        "tensor_parallel_size": settings.tensor_parallel,
        "quantization": settings.quantization,
        "enforce_eager": on_cpu or not settings.graphs,
        "max_num_seqs": settings.max_requests,
        "max_num_batched_tokens": settings.max_new_tokens,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "async_scheduling": False,
        "disable_hybrid_kv_cache_manager": True,  # one kind of page: occupancy is what policy/residency.py counts
        "disable_log_stats": True,
        "trust_remote_code": False,
        "worker_extension_cls": "wisp.engines.vllm.sampler.WorkerExtension",
        "speculative_config": {
            "method": "custom_class",
            "model": "wisp.engines.vllm.sampler.NoProposer",
            "num_speculative_tokens": max(settings.max_draft_tokens, 1),
        },
    }
    kv_bytes = None if settings.kv_gib is None else int(settings.kv_gib * 2**30)
    if on_cpu:
        arguments["block_size"] = _CPU_PAGE_TOKENS
        kv_bytes = int(free_bytes * _CPU_KV_SHARE) if kv_bytes is None else kv_bytes
    elif settings.memory_gib is not None:
        arguments["gpu_memory_utilization"] = min(settings.memory_gib * 2**30 / free_bytes, 1.0)
    else:
        arguments["gpu_memory_utilization"] = _MEMORY_SHARE
    if kv_bytes is not None:
        arguments["kv_cache_memory_bytes"] = kv_bytes
    return arguments
