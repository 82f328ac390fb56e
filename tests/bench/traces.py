"""Small recordings for the live comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.formats.test_calibration import CALIBRATION
from tests.training.traces import PAIR, header
from wisp.demo.pair import TARGET
from wisp.engines import vocabulary
from wisp.formats.trace import Chain, TraceHeader, TraceRecord, TraceWriter
from wisp.policy.batch_time import BatchTimeModel
from wisp.sim.estimation import calibration_samples
from wisp.types import DraftStats

STATS = DraftStats(0.9, 0.1, 2.0, 1.0, 0.9)
WRONG = 7


def record(prompt: int, num_prompt: int = 8, num_output: int = 6) -> TraceRecord:
    """A drafter that is right twice, then wrong, at every position."""
    tokens = tuple(range(100 * (prompt + 1), 100 * (prompt + 1) + num_prompt + num_output))
    output = tokens[num_prompt:]
    chains = []
    for position in range(num_output):
        right = output[position : position + 2]
        chain = (*right, WRONG)
        chains.append(Chain(chain, (STATS,) * len(chain), len(right), len(chain)))
    return TraceRecord(prompt, f"#{prompt}", tokens, num_prompt, tuple(chains), 0.01, 0.01)


def records(number: int = 4, num_output: int = 6) -> list[TraceRecord]:
    return [record(index, 8 + index, num_output) for index in range(number)]


def demo_header() -> TraceHeader:
    """Of a pair with the demo target's vocabulary."""
    own = vocabulary.fingerprint((TARGET / "tokenizer.json").read_bytes())
    return replace(header(), pair=replace(PAIR, vocabulary=own))


def save_trace(path: Path, num_output: int = 32) -> Path:
    writer = TraceWriter(path, demo_header())
    for one in records(num_output=num_output):
        writer.append(one)
    return path


def save_times(path: Path, milliseconds: float = 4.0) -> Path:
    """Batches of one length, whatever they hold."""
    samples = calibration_samples(BatchTimeModel(milliseconds / 1e3, 0.0).predict)
    replace(CALIBRATION, samples=samples).save(path)
    return path
