"""`wisp train` from trace to predictor."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.training.traces import PAIR, header, made_up_records
from wisp.errors import ConfigError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.trace import TraceWriter
from wisp.policy.controller import FixedLength
from wisp.training.comparison import CELLS, best_settings, candidates
from wisp.training.replay import replay
from wisp.training.train_command import TrainConfig, run_train


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    """It writes a predictor for the trace's pair and a plot, and reports every rule in every cell."""
    writer = TraceWriter(tmp_path / "t.jsonl", header())
    for record in made_up_records(10):
        writer.append(record)
    config = TrainConfig((tmp_path / "t.jsonl",), tmp_path / "p.json", tmp_path / "p.svg", hidden=(4,))
    assert run_train(config, json_output=as_json) == 0
    output = capsys.readouterr().out
    trained = TrainedPredictor.load(tmp_path / "p.json")
    assert trained.pair == PAIR
    assert ET.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
    if as_json:
        summary = json.loads(output)
        assert len(summary["rules"]) == len(CELLS) * len(candidates(trained.predictor))
        assert summary["auc"]["predictor"] == pytest.approx(trained.report["auc"])
        assert len(summary["fixed"]) == 12
    else:
        assert "modelled, alone on the server" in output


def test_settings_are_chosen_on_the_tuning_prompts() -> None:
    """The fixed length that is fastest there, whatever it gives elsewhere."""
    records = made_up_records(8)
    rules = {f"K = {k}": FixedLength(k) for k in range(1, 5)}
    best = max(rules, key=lambda name: replay(records, rules[name], CELLS[1]).rate)
    assert best_settings(records, rules, CELLS[1]) == best


def test_layers_have_units() -> None:
    """A width of 0 is refused."""
    with pytest.raises(ConfigError):
        TrainConfig((), Path("p"), hidden=(0,))
