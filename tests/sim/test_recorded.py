"""Recorded drafts in place of drawn ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.formats.test_predictor import TRAINED
from tests.training.traces import header
from wisp.errors import ConfigError, FormatError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.trace import Chain, TraceHeader, TraceRecord, TraceWriter
from wisp.policy.systems import SYSTEMS
from wisp.sim.app import run_simulation
from wisp.sim.options import SimulationOptions
from wisp.sim.recorded import RecordedAcceptance
from wisp.sim.scenario import Scenario
from wisp.sim.script import END, TOKEN, WRONG, SessionScript
from wisp.sim.simulator import simulate
from wisp.sim.workload import Lengths, Workload
from wisp.types import DraftStats, FinishReason

HEADER = replace(header(), chain_length=3)


def _chain(num_accepted: int, confidence: float = 0.5) -> Chain:
    stats = tuple(DraftStats(confidence + 0.1 * index, 1.0, 1.0, 1.0, 0.5) for index in range(3))
    return Chain((7, 7, 7), stats, num_accepted, min(num_accepted + 1, 3))


def _record(*accepted: int, name: str = "a") -> TraceRecord:
    """Chains that accept so much, and three that the end of the output cuts off."""
    chains = tuple(_chain(count) for count in accepted) + (Chain((), (), 0, 0),) * 3
    return TraceRecord(0, name, (1, 2, *(7,) * len(chains)), 2, chains, 0.01, 0.01)


def _script(length: int, *accepted: int) -> SessionScript:
    fate = RecordedAcceptance(HEADER, [_record(*accepted)]).fate(length, np.random.default_rng(0))
    return SessionScript(5, length, None, fate)


def test_a_draft_is_the_chain_that_was_recorded_where_it_begins() -> None:
    """With the drafter's statistics, right as far as the target accepted it, and no longer than it."""
    script = _script(9, 0, 2, 3)
    drafted = [script.drafted(1, index) for index in range(4)]
    assert [one and one.token for one in drafted] == [TOKEN, TOKEN, WRONG, None]
    assert [one and one.stats and one.stats.confidence for one in drafted] == [0.5, 0.6, 0.7, None]


def test_verdicts_are_the_recorded_ones() -> None:
    """Cut to what is verified, and to the end of the text, which is the workload's."""
    script = _script(6, 0, 2, 3)
    assert script.verify(0, 3, 100) == (0, TOKEN, None)
    assert script.verify(1, 3, 100) == (2, TOKEN, None)
    assert script.verify(1, 1, 100) == (1, TOKEN, None)
    assert script.verify(2, 3, 100) == (3, END, FinishReason.STOP)
    assert script.verify(2, 3, 5) == (3, None, FinishReason.LENGTH)


def test_sessions_longer_than_their_record_begin_it_again() -> None:
    """Chains that the end of the output cut off are never met."""
    script = _script(100, 0, 2, 3)
    assert [script.verify(position, 3, 100)[0] for position in range(7)] == [0, 2, 3, 0, 2, 3, 0]


def test_every_record_is_drawn(tmp_path: Path) -> None:
    """Of all files, by the session's own stream."""
    for name, record in (("a", _record(1)), ("b", _record(3))):
        TraceWriter(tmp_path / f"{name}.jsonl", HEADER).append(record)
    acceptance = RecordedAcceptance.read([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    rng = np.random.default_rng(0)
    drawn = [acceptance.fate(9, rng).num_right(0, 3) for _ in range(400)]
    assert np.mean([count == 3 for count in drawn]) == pytest.approx(0.5, abs=0.1)
    assert set(drawn) == {1, 3}


def test_outputs_that_are_too_short_are_left_out() -> None:
    """If none is left, that is said with what to do."""
    with pytest.raises(FormatError, match=r"no output of the trace is longer than its chains of 3 tokens.*--tokens"):
        RecordedAcceptance(HEADER, [_record(), replace(_record(), chains=(_chain(0),))])


def test_a_simulation_accepts_what_the_trace_accepts() -> None:
    """Drafts of four: chains of three tokens, of which one is accepted."""
    workload = Workload(Lengths(10.0), Lengths(50.0), acceptance=RecordedAcceptance(HEADER, [_record(1, 1, 1)]))
    scenario = Scenario(lambda _: 0.01, num_devices=3, workload=workload, warmup=0.0, duration=20.0)
    drafting = simulate(scenario, replace(SYSTEMS["fixed"], max_draft_tokens=4), 0).drafting
    assert drafting.num_drafted > 100
    assert drafting.accepted_share == pytest.approx(1 / 3, abs=0.03)


def test_traces_of_other_settings_do_not_mix(tmp_path: Path) -> None:
    """The file that differs is named."""
    headers: list[TraceHeader] = [HEADER, replace(HEADER, temperature=0.25)]
    for index, one in enumerate(headers):
        TraceWriter(tmp_path / f"{index}.jsonl", one).append(_record(1))
    with pytest.raises(FormatError, match=r"1\.jsonl was made with other settings: temperature"):
        RecordedAcceptance.read([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])


def _told(tmp_path: Path, *, trained: TrainedPredictor = TRAINED) -> SimulationOptions:
    """Options with a trace, and a predictor of its pair."""
    path, predictor = tmp_path / "trace.jsonl", tmp_path / "predictor.json"
    TraceWriter(path, HEADER).append(_record(0, 2, 3, 1))
    trained.save(predictor)
    return SimulationOptions(
        systems=("wisp",),
        devices=3,
        output_tokens=30.0,
        warmup=0.0,
        duration=10.0,
        acceptance_traces=(path,),
        predictor=predictor,
        json_output=True,
    )


def test_the_command_replays_traces_with_a_real_predictor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose threshold decides what is sent: everything, or nothing."""
    num_verified = []
    for threshold in (0.0, 1.0):
        run_simulation(_told(tmp_path, trained=replace(TRAINED, threshold=threshold)))
        drafting = json.loads(capsys.readouterr().out)["systems"]["wisp"]["drafting"]
        num_verified.append(drafting["num_verified"])
        (tmp_path / "trace.jsonl").unlink()
    assert num_verified[0] > 50
    assert num_verified[1] == 0


def test_predictors_of_other_models_are_refused(tmp_path: Path) -> None:
    """And those that nothing is recorded for."""
    other = replace(TRAINED, pair=replace(TRAINED.pair, draft_weights="other"))
    with pytest.raises(FormatError, match="or their weights differ"):
        run_simulation(_told(tmp_path, trained=other))
    with pytest.raises(ConfigError, match="give --acceptance-trace with --predictor"):
        run_simulation(replace(_told(tmp_path), acceptance_traces=()))
