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
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.server.app import build_engine
from wisp.server.scheduling import batch_time_model
from wisp.sim.estimation import calibration_samples
from wisp.types import GenerationRequest, SamplingParams, StopRules

TIMES = replace(CALIBRATION, samples=calibration_samples(BatchTimeModel().predict))


def _config(tmp_path: Path, *, model: Path = TARGET, of_pair: bool = True) -> ServerConfig:
    trace, times = tmp_path / "trace.jsonl", tmp_path / "times.json"
    pair = PAIR
    if of_pair:
        pair = replace(PAIR, vocabulary=vocabulary.fingerprint((TARGET / "tokenizer.json").read_bytes()))
    TraceWriter(trace, replace(header(), pair=pair)).append(TraceRecord(0, "one", (1, 2, 3, 9), 3, (), 0.01, 0.01))
    TIMES.save(times)
    return ServerConfig(ModelConfig(str(model)), replay=trace, batch_times=str(times))


def test_it_serves_the_recorded_prompts_as_that_model(tmp_path: Path) -> None:
    """Labelled as emulated, computing on what the times were measured on."""
    engine = build_engine(_config(tmp_path))
    assert (engine.card.emulated, engine.card.model_id) == (True, "target")
    assert (engine.card.device, engine.card.eos_token_ids) == (TIMES.device, (0, 3))
    assert engine.open("s", "", GenerationRequest((1, 2, 3), 3, SamplingParams(), StopRules(8))) == 0


def test_its_cache_is_as_large_as_asked(tmp_path: Path) -> None:
    """Without a word, it has no limit."""
    config = _config(tmp_path)
    assert build_engine(replace(config, kv_tokens=4096)).kv_capacity_tokens == 4096
    assert build_engine(config).kv_capacity_tokens > 1 << 30


def test_schedulers_start_from_what_the_hardware_does_not_know(tmp_path: Path) -> None:
    """The other half of the samples: here both halves are of one formula, so both agree."""
    config = _config(tmp_path)
    engine = build_engine(config)
    shape = BatchShape.of_members([(5, 300), (1, 700)])
    assert batch_time_model(engine, config).predict(shape) == pytest.approx(BatchTimeModel().predict(shape), rel=0.05)


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
