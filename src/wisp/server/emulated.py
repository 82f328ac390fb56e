"""A target that is emulated: verdicts replayed from a trace, durations from a file of batch times."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from wisp.calibration.measured import MeasuredBatchTime
from wisp.calibration.shipped import load_profile
from wisp.config import ModelConfig, ServerConfig
from wisp.engines import vocabulary
from wisp.engines.base import ModelCard
from wisp.engines.timed import RecordedOutputs, TimedTarget
from wisp.errors import ConfigError, FormatError, ModelError
from wisp.formats.calibration import Calibration
from wisp.formats.trace import read_trace


def emulated_target(config: ServerConfig) -> TimedTarget:
    """What `--replay` and `--batch-times` describe. Raises ModelError, FormatError, ConfigError."""
    if config.replay is None or config.batch_times is None:
        raise ConfigError("an emulated target needs both --replay and --batch-times")
    times = load_profile(config.batch_times)
    header, records = read_trace(config.replay)
    card = _card(config.target, times)
    if header.pair.vocabulary != card.vocabulary:
        raise FormatError(
            f"{config.replay} was recorded with another vocabulary ({header.pair.vocabulary}) than that of "
            f"{config.target.model} ({card.vocabulary}): serve the target that made the trace"
        )
    card = replace(card, weights=header.pair.target_weights)
    target = TimedTarget(card, RecordedOutputs.of(records), MeasuredBatchTime(times.samples), time.sleep)
    if config.kv_tokens is not None:
        target.kv_capacity_tokens = config.kv_tokens
    return target


def _card(target: ModelConfig, times: Calibration) -> ModelCard:
    """Of a model's folder, without its weights; computes on what the batch times were measured on."""
    folder = Path(target.model)
    try:
        tokenizer = (folder / "tokenizer.json").read_bytes()
        config = json.loads((folder / "config.json").read_text())
        generation = json.loads((folder / "generation_config.json").read_text())
        context = int(config["max_position_embeddings"])
        eos = _ids(generation.get("eos_token_id", config.get("eos_token_id")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{target.model!r} is not the folder of a model with tokenizer.json, config.json and "
            f"generation_config.json, which an emulated target needs: {error!r}"
        ) from error
    return ModelCard(
        model_id=target.name or folder.resolve().name,
        tokenizer_json=tokenizer,
        vocabulary=vocabulary.fingerprint(tokenizer),
        vocabulary_size=vocabulary.vocabulary_size(tokenizer),
        context_length=target.max_context or context,
        eos_token_ids=eos,
        dtype=times.dtype,
        device=times.device,
    )


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, list) else () if value is None else (int(value),)
