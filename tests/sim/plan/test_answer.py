"""A plan's answer: words, table, commands, JSON; and the fleet file it may be asked with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from tests.sim.plan.test_planner import SCENARIO, step
from wisp.errors import ConfigError, FormatError
from wisp.sim.hardware import ServerDrafter
from wisp.sim.machine import MachineOptions
from wisp.sim.options import SimulationOptions
from wisp.sim.plan import app
from wisp.sim.plan.answer import Answer
from wisp.sim.plan.app import PlanOptions
from wisp.sim.plan.fleet import with_fleet
from wisp.sim.plan.html import CHOSEN, OTHERS, html_plan
from wisp.sim.plan.planner import Effort, Plan, study_of
from wisp.sim.study.model import Point
from wisp.sim.study.standing import Results


def answer(
    capacities: Mapping[str, Sequence[int]],
    recommended: str,
    server_drafter: ServerDrafter | None = None,
    **changes: object,
) -> Answer:
    """Made up: as many good tokens per second as devices."""
    num_seeds = len(next(iter(capacities.values())))
    scenario = replace(SCENARIO, server_drafter=server_drafter)
    study = study_of(scenario, Effort(tuple(capacities), num_seeds, 40, 3.0, 6.0), 0.8)
    points = {
        ("plan", system, seed): Point("plan", system, seed, found, {"0.8x capacity": _figures(found)})
        for system, of_seeds in capacities.items()
        for seed, found in enumerate(of_seeds)
    }
    plan = Plan(Results(study, points), recommended, 0.8, ("KV cache", "compute"))
    return replace(Answer(plan, SimulationOptions(), "a machine", 3.6), **changes)  # type: ignore[arg-type]


def _figures(found: int) -> dict[str, float]:
    names = ("attainment", "utilisation", "accepted_share", "waste_ratio", "p95_first_token_time")
    return {"goodput": float(found), **dict.fromkeys(names, 0.5)}


PAYS = answer({"centralized": [100, 102], "wisp-plus": [200, 204]}, "wisp-plus")


def test_the_answer_names_system_devices_price_and_limits() -> None:
    """3.6 per hour at 202 tokens per second: 4.95 per million."""
    text = "\n".join(PAYS.words())
    assert "Deploy wisp-plus" in text
    assert "give it 161 (80%), 4.95 per million tokens" in text
    assert "Drafting on the devices pays: wisp-plus serves 2.00 +- 0.00" in text
    assert "memory for the KV cache and the engine's speed" in text


def test_drafting_pays_only_where_the_interval_says_so() -> None:
    """Or does not, or cannot be told."""
    assert PAYS.drafting_pays is True
    assert answer({"centralized": [200, 204], "wisp-plus": [100, 102]}, "centralized").drafting_pays is False
    unclear = answer({"centralized": [100, 100], "wisp-plus": [90, 120]}, "wisp-plus")
    assert unclear.drafting_pays is None
    assert "cannot be told" in "\n".join(unclear.words())


def test_what_was_not_measured_is_said() -> None:
    """Data sheets and assumed acceptance; with measured inputs, nothing."""
    assert len(PAYS.warnings()) == 3
    measured = replace(
        PAYS.options,
        machine=MachineOptions(profile="p.json"),
        acceptance_traces=(Path("t.jsonl"),),
        lengths=(Path("l.json"),),
    )
    assert replace(PAYS, options=measured).warnings() == []


def test_a_drafter_on_the_server_is_said_to_be_assumed_and_named_to_the_server() -> None:
    """Where the recommended system makes use of it."""
    beside = answer({"centralized": [1, 1], "wisp-plus": [2, 2]}, "wisp-plus", server_drafter=ServerDrafter(step, 1000))
    assert "the drafter on the server is a data sheet's too, qwen3-0.6b" in "\n".join(beside.warnings())
    assert beside.commands()[0].endswith("--draft SERVER_DRAFT")
    elsewhere = answer(
        {"centralized": [3, 3], "wisp-plus": [2, 2]}, "centralized", server_drafter=ServerDrafter(step, 1)
    )
    assert "drafter on the server" not in "\n".join(elsewhere.warnings())


def test_without_a_price_nothing_costs_anything() -> None:
    """And the table has a column less."""
    free = replace(PAYS, gpu_price=None)
    assert free.cost("wisp-plus") is None
    assert len(free.table().columns) == len(PAYS.table().columns) - 1
    assert "per million" not in "\n".join(free.words())


def test_commands_start_what_is_recommended() -> None:
    """With the SLO classes, the profile where it is used, and a predictor where one is needed."""
    profiled = replace(PAYS.options, machine=MachineOptions(profile="p.json"))
    serve, edge = replace(PAYS, options=profiled).commands()
    assert serve == "wisp serve MODEL --system wisp-plus --slo-class 10-per-s=10,1 --profile p.json"
    assert edge == "wisp edge --server HOST:7600 --system wisp-plus --draft DRAFT"
    published = answer({"centralized": [1], "wisp": [2]}, "wisp").commands()
    assert published[1].endswith("--draft DRAFT --predictor PREDICTOR")
    assert "--draft" not in answer({"centralized": [2], "wisp": [1]}, "centralized").commands()[1]


def test_the_table_shows_every_system() -> None:
    """In a terminal of 80 columns, no figure broken."""
    shown = StringIO()
    Console(width=80, file=shown).print(PAYS.table())
    text = shown.getvalue()
    assert "centralized" in text
    assert "202 +- 25" in text


def test_a_fleet_file_sets_the_devices(tmp_path: Path) -> None:
    """Numbers stand for ranges too."""
    path = tmp_path / "fleet.json"
    path.write_text('{"draft_speed": "5-20", "rtt_ms": 30, "acceptance": 0.6}')
    options = with_fleet(SimulationOptions(), path)
    assert (options.draft_speed, options.rtt_ms, options.acceptance) == ("5-20", "30", 0.6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[1]", "not one JSON object"),
        ('{"speed": 3}', "says speed, which is not one of draft_speed"),
        ('{"acceptance": "high"}', 'acceptance cannot be "high"'),
        ('{"draft_speed": true}', "draft_speed cannot be true"),
    ],
)
def test_a_fleet_file_that_is_wrong_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """With what is wrong in it."""
    path = tmp_path / "fleet.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=message):
        with_fleet(SimulationOptions(), path)


@pytest.mark.parametrize(
    ("num_devices", "num_gpus", "words"),
    [
        (None, None, ""),
        (161, 1, "For 161 devices take one GPU, 3.6 an hour."),
        (500, 4, "For 500 devices take 4 such GPUs, each with a server of its own, 14.4 an hour."),
    ],
)
def test_a_number_of_devices_takes_so_many_gpus(num_devices: int | None, num_gpus: int | None, words: str) -> None:
    """161 on each, with the margin."""
    asked = replace(PAYS, num_devices=num_devices)
    assert asked.num_gpus == asked.as_dict()["gpus"] == num_gpus
    assert words in "\n".join(asked.words())


def test_the_page_shows_every_system_and_is_well_formed() -> None:
    """A bar and a row each, the recommended one in its own colour; it loads nothing."""
    page = html_plan(replace(PAYS, machine="a <machine>"))
    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert [bar.get("fill") for bar in root.iter("rect")] == [OTHERS, CHOSEN]
    widths = [float(bar.get("width") or 0.0) for bar in root.iter("rect")]
    assert widths[0] == pytest.approx(widths[1] / 2.0, abs=0.1)
    assert [row[0].text for row in root.iter("tr")] == ["system", "centralized", "wisp-plus"]
    text = "".join(root.itertext())
    assert "Simulated on a <machine>" in text
    assert all(line in text for line in (*PAYS.words(), *PAYS.commands()))
    assert not {"src", "href"} & {name for element in root.iter() for name in element.attrib}


QUICK = SimulationOptions(
    machine=MachineOptions(model="qwen3-8b", kv_tokens=50),
    systems=("centralized", "fixed"),
    prompt_tokens=16.0,
    output_tokens=8.0,
    variation=0.0,
    first_token=0.5,
    think=1.0,
    warmup=1.0,
)
"""Two sessions fit into the cache; others wait too long for their first token."""


@pytest.mark.parametrize("json_output", [False, True])
def test_the_command_answers(
    json_output: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In words, or one JSON object; and in a page where one is asked for."""
    monkeypatch.setattr(app, "QUICK", Effort((), 1, 10, 1.0, 4.0))
    app.run(PlanOptions(replace(QUICK, json_output=json_output), gpu_price=1.0, workers=1, html=tmp_path / "plan.html"))
    assert "Deploy" in (tmp_path / "plan.html").read_text()
    shown = capsys.readouterr().out
    if json_output:
        found = json.loads(shown)
        assert found["devices_per_gpu"] == found["systems"][found["recommended"]]["devices"]
    else:
        assert "Deploy" in shown
        assert "wisp serve MODEL" in shown


def test_a_price_must_be_positive() -> None:
    """Before anything is simulated."""
    with pytest.raises(ConfigError, match="price"):
        app.run(PlanOptions(QUICK, gpu_price=0.0))


def test_devices_and_page_are_checked_before_anything_is_simulated(tmp_path: Path) -> None:
    """A search takes minutes."""
    with pytest.raises(ConfigError, match="devices must be at least 1, not 0"):
        app.run(PlanOptions(QUICK, num_devices=0))
    with pytest.raises(ConfigError, match="no page can be written to"):
        app.run(PlanOptions(QUICK, html=tmp_path / "nowhere" / "plan.html"))
