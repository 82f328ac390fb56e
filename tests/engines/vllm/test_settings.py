"""What vLLM is told; vLLM itself is not needed for it."""

from __future__ import annotations

from wisp.config import ModelConfig
from wisp.engines.vllm.settings import VllmSettings, engine_arguments


def test_what_a_server_is_configured_with_reaches_vllm() -> None:
    """Every option of the command line that is vLLM's."""
    config = ModelConfig(
        "a/model",
        dtype="bfloat16",
        kv_gib=2.0,
        max_context=4096,
        engine="vllm",
        tensor_parallel=4,
        quantization="fp8",
    )
    arguments = engine_arguments(VllmSettings.of(config, max_requests=7), on_cpu=False, free_bytes=1 << 40)
    expected = {
        "model": "a/model",
        "dtype": "bfloat16",
        "kv_cache_memory_bytes": 2 << 30,
        "max_model_len": 4096,
        "tensor_parallel_size": 4,
        "quantization": "fp8",
        "max_num_seqs": 7,
    }
    assert {name: arguments[name] for name in expected} == expected
