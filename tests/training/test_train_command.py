"""`wisp train` from trace to predictor."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.training.traces import PAIR, header, made_up_records
from wisp.errors import ConfigError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.trace import TraceHeader, TraceWriter
from wisp.policy.controller import FixedLength
from wisp.training.comparison import CELLS, best_settings, candidates
from wisp.training.replay import replay
from wisp.training.train_command import TrainConfig, run_train


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    """It writes a predictor for the pair of its traces and a plot, and reports every rule, cell and condition."""
    paths = [written(tmp_path / "greedy.jsonl", header()), written(tmp_path / "t.jsonl", header("coupled", 0.8))]
    config = TrainConfig(tuple(paths), tmp_path / "p.json", tmp_path / "p.svg", hidden=(4,))
    assert run_train(config, json_output=as_json) == 0
    output = capsys.readouterr().out
    trained = TrainedPredictor.load(tmp_path / "p.json")
    assert trained.pair == PAIR
    assert trained.conditions == ("greedy", "coupled, temperature 0.8")
    assert ET.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
    if as_json:
        summary = json.loads(output)
        assert sum(one["num_labels"] for one in summary["conditions"]) == summary["num_labels"][2]
        for one, kept in zip(summary["conditions"], trained.report["conditions"], strict=True):
            assert len(one["rules"]) == len(CELLS) * len(candidates(trained.predictor, trained.threshold))
            assert one["auc"]["predictor"] == pytest.approx(kept["auc"])
            assert len(one["fixed"]) == len(CELLS) * 12
    else:
        assert "modelled, alone on the server" in output
        assert "coupled, temperature 0.8" in output


def written(path: Path, of: TraceHeader) -> Path:
    writer = TraceWriter(path, of)
    for record in made_up_records(10):
        writer.append(record)
    return path


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
