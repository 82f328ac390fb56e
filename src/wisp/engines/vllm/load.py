"""Brings vLLM up inside its process."""

from __future__ import annotations

from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor
from vllm.version import __version__

from wisp.engines.packed.memory import available_bytes
from wisp.engines.vllm import selfcheck
from wisp.engines.vllm.core import VllmCore
from wisp.engines.vllm.process import EngineFacts
from wisp.engines.vllm.settings import VllmSettings, engine_arguments
from wisp.errors import ConfigError, ModelError, UnsupportedModel, WispError


def load(settings: VllmSettings, vocabulary_size: int) -> tuple[VllmCore, EngineFacts]:
    """Load and check a model. Raises ModelError and ConfigError."""
    on_cpu = bool(current_platform.is_cpu())
    _check_device(settings, on_cpu=on_cpu)
    try:
        config = EngineArgs(**machine_arguments(settings)).create_engine_config()
        _check_configuration(config)
        engine = EngineCore(config, Executor.get_class(config), log_stats=False)
    except WispError:
        raise
    except Exception as error:  # vLLM raises whatever its parts raise
        raise ModelError(f"vLLM cannot serve {settings.model!r}: {error}") from error
    size = min(vocabulary_size, int(config.model_config.get_vocab_size()))
    engine.collective_rpc("install_wisp_sampler", args=(size,))
    core = VllmCore(engine)
    context_length = min(int(config.model_config.max_model_len), core.capacity_tokens)
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    selfcheck.check(core, size, context_length, dtype)
    return core, EngineFacts(
        capacity_tokens=core.capacity_tokens,
        page_tokens=core.page_tokens,
        context_length=context_length,
        vocabulary_size=size,
        dtype=dtype,
        device=_device_name(settings.tensor_parallel, on_cpu=on_cpu),
    )


def machine_arguments(settings: VllmSettings) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs on this machine."""
    on_cpu = bool(current_platform.is_cpu())
    return engine_arguments(settings, on_cpu=on_cpu, free_bytes=_memory(on_cpu=on_cpu))


def _check_device(settings: VllmSettings, *, on_cpu: bool) -> None:
    wanted = settings.device.partition(":")[0]
    built_for = "cpu" if on_cpu else "cuda"
    if wanted not in ("auto", built_for):
        raise ConfigError(f"the device is {settings.device}, but the installed vLLM computes on {built_for}")


def _check_configuration(config: Any) -> None:
    """Raise UnsupportedModel for models whose state cannot be rolled back to any earlier token."""
    model = config.model_config
    if model.is_hybrid or model.is_attention_free or model.is_encoder_decoder:
        raise UnsupportedModel(
            f"the architecture {', '.join(model.architectures)} is not supported: it keeps state other than the keys "
            "and values of its tokens, and that cannot be rolled back when a draft is rejected"
        )


def _memory(*, on_cpu: bool) -> int:
    """Bytes: free ones of the machine, or all of a GPU's."""
    if on_cpu:
        return available_bytes(torch.device("cpu"))
    return int(torch.cuda.get_device_properties(0).total_memory)


def _device_name(num_devices: int, *, on_cpu: bool) -> str:
    """What computes, vLLM and its version included: batch times of one hold for no other."""
    name = "cpu" if on_cpu else torch.cuda.get_device_name(0)
    split = f"{num_devices} x " if num_devices > 1 else ""
    return f"{split}{name}, vLLM {__version__}"
