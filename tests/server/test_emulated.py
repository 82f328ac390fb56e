"""The emulated target that `wisp serve --replay` runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.formats.test_calibration import CALIBRATION
from tests.training.traces import PAIR, header
from wisp.config import ModelConfig, ServerConfig
from wisp.demo.pair import TARGET
from wisp.engines import vocabulary
from wisp.errors import ConfigError, FormatError, ModelError
from wisp.formats.trace import TraceRecord, TraceWriter
from wisp.server.app import build_engine
from wisp.types import GenerationRequest, SamplingParams, StopRules


def _config(tmp_path: Path, *, model: Path = TARGET, of_pair: bool = True) -> ServerConfig:
    trace, times = tmp_path / "trace.jsonl", tmp_path / "times.json"
    pair = PAIR
    if of_pair:
        pair = replace(PAIR, vocabulary=vocabulary.fingerprint((TARGET / "tokenizer.json").read_bytes()))
    TraceWriter(trace, replace(header(), pair=pair)).append(TraceRecord(0, "one", (1, 2, 3, 9), 3, (), 0.01, 0.01))
    CALIBRATION.save(times)
    return ServerConfig(ModelConfig(str(model)), replay=trace, batch_times=times)


def test_it_serves_the_recorded_prompts_as_that_model(tmp_path: Path) -> None:
    """Labelled as emulated, computing on what the times were measured on."""
    engine = build_engine(_config(tmp_path))
    assert (engine.card.emulated, engine.card.model_id) == (True, "target")
    assert (engine.card.device, engine.card.eos_token_ids) == (CALIBRATION.device, (0, 3))
    assert engine.open("s", "", GenerationRequest((1, 2, 3), 3, SamplingParams(), StopRules(8))) == 0


def test_a_trace_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """Its ids would mean something else."""
    with pytest.raises(FormatError, match="recorded with another vocabulary"):
        build_engine(_config(tmp_path, of_pair=False))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    """With what an emulated target needs of it."""
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        build_engine(_config(tmp_path, model=tmp_path))


def test_a_trace_without_batch_times_is_refused(tmp_path: Path) -> None:
    """And the other way round."""
    with pytest.raises(ConfigError, match="--batch-times"):
        ServerConfig(ModelConfig("m"), replay=tmp_path / "trace.jsonl")
