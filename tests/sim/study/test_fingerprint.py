"""What makes a finished point stale, and what does not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.training.traces import header
from wisp.formats.trace import Chain, TraceRecord
from wisp.policy.batch_time import BatchShape
from wisp.policy.predictor import MlpPredictor
from wisp.policy.systems import SYSTEMS
from wisp.sim.hardware import GPUS, MODELS, Roofline
from wisp.sim.recorded import RecordedAcceptance
from wisp.sim.scenario import Scenario
from wisp.sim.study.fingerprint import code_outline, fingerprint, plain
from wisp.sim.study.model import Cell, Measure, Task
from wisp.sim.workload import Workload
from wisp.types import DraftStats

ROOFLINE = Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])


def task(**changes: object) -> Task:
    """A point to be."""
    whole = Task(Cell("base", Scenario(ROOFLINE)), "centralized", SYSTEMS["centralized"], 0, Measure(), None)
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_equal_settings_have_equal_fingerprints() -> None:
    """Names of cells and systems do not count."""
    renamed = task(cell=Cell("other", Scenario(ROOFLINE), {"engine": "fast"}), system_name="other")
    assert fingerprint(renamed) == fingerprint(task())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"system": replace(SYSTEMS["centralized"], max_draft_tokens=1)},
        {"system": SYSTEMS["centralized-slo"]},
        {"measure": Measure(level=0.9)},
        {"cell": Cell("base", Scenario(replace(ROOFLINE, fixed_s=0.04)))},
        {"cell": Cell("base", Scenario(ROOFLINE, duration=61.0))},
    ],
)
def test_whatever_defines_a_point_changes_its_fingerprint(changes: dict[str, object]) -> None:
    """Seed, system, measure, hardware, time."""
    assert fingerprint(task(**changes)) != fingerprint(task())


def test_of_the_code_only_what_runs_counts() -> None:
    """Comments, docstrings and line breaks do not."""
    code = 'def f(x):\n    """Says."""\n    return x + 1\n'
    assert code_outline(code) == code_outline('"""Module."""\n\ndef f(x):\n    # why\n    return (x +\n 1)\n')
    assert code_outline(code) != code_outline(code.replace("+ 1", "+ 2"))


def _step(seconds: float, _: BatchShape) -> float:
    return seconds


def test_functions_with_arguments_have_their_content() -> None:
    """A partial is its function and its arguments."""
    assert plain(partial(_step, 0.1)) == plain(partial(_step, 0.1)) != plain(partial(_step, 0.2))


def test_recorded_drafts_count_by_what_was_recorded() -> None:
    """And a trained predictor by its weights: both make the points of a study."""

    def of(num_accepted: int, weight: float) -> str:
        chain = Chain((7,), (DraftStats(0.5, 1.0, 1.0, 1.0, 0.5),), num_accepted, 1)
        record = TraceRecord(0, "a", (1, 7, 7), 1, (chain, chain), 0.01, 0.01)
        recorded = RecordedAcceptance(replace(header(), chain_length=1), [record])
        layer = (np.array([[weight]]), np.zeros(1))
        predictor = MlpPredictor(("confidence",), np.zeros(1), np.ones(1), (layer,))
        scenario = Scenario(ROOFLINE, workload=Workload(acceptance=recorded), predictor=predictor)
        return fingerprint(task(cell=Cell("base", scenario)))

    assert of(1, 2.0) == of(1, 2.0)
    assert len({of(1, 2.0), of(0, 2.0), of(1, 3.0)}) == 3


def test_what_has_no_content_is_refused() -> None:
    """An address is no fingerprint."""
    with pytest.raises(TypeError, match="has no fingerprint"):
        plain(object())
