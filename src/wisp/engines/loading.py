"""Which engine serves a target model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wisp.config import ModelConfig
from wisp.engines.base import TargetEngine


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest step that an engine has to be ready for, and how many sessions it holds."""

    max_sessions: int = 512
    max_requests: int = 64
    max_new_tokens: int = 2048
    max_draft_tokens: int = 32


DEFAULT_LIMITS = StepLimits()


def load_target(config: ModelConfig, limits: StepLimits = DEFAULT_LIMITS) -> TargetEngine:
    """Load a target model on the configured engine. Raises ModelError, and ConfigError where vLLM is not there."""
    if config.engine == "vllm":
        from wisp.engines.vllm.settings import VllmSettings
        from wisp.engines.vllm.target import VllmTarget

        settings = VllmSettings.of(
            config,
            max_requests=limits.max_requests,
            max_new_tokens=limits.max_new_tokens,
            max_draft_tokens=limits.max_draft_tokens,
        )
        return VllmTarget.load(settings, config.name)
    from wisp.engines.packed.loading import LoadOptions
    from wisp.engines.target import TransformersTarget

    options = LoadOptions.of(config)
    options = replace(options, max_sequences=max(options.max_sequences, limits.max_sessions))
    return TransformersTarget.load(config.model, options)
