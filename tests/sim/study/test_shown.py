"""Tables, maps and JSON of a study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.sim.study.test_runner import study as tiny_study
from tests.sim.study.test_standing import results
from wisp.errors import ConfigError
from wisp.policy.systems import SYSTEMS
from wisp.sim import oracle
from wisp.sim.study import app
from wisp.sim.study.app import StudyOptions, bars, chosen, run, verdict_lines
from wisp.sim.study.heatmap import diverging, ratio_map, winner_map
from wisp.sim.study.presets import PRESETS
from wisp.sim.study.sheets import map_sheets, system_sheet
from wisp.sim.study.standing import ORACLE, map_verdict

MADE_UP = results(
    {
        "a | b": {"centralized": [10, 10], "wisp": [20, 22], "wisp-plus": [30, 33]},
        "c & d": {"centralized": [40, 40], "wisp": [20, 22], "wisp-plus": [20, 20]},
    }
)


def test_a_map_is_well_formed_and_shows_every_cell() -> None:
    """Names with special characters included; nothing is loaded from elsewhere."""
    found = map_verdict(MADE_UP)
    assert found is not None
    for svg in (winner_map(MADE_UP, found), ratio_map(MADE_UP, found)):
        texts = [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        assert {"a | b", "c & d"} <= set(texts)
        assert "href" not in svg
    assert "wisp-plus 32" in winner_map(MADE_UP, found)
    assert ">0.50</text>" in ratio_map(MADE_UP, found)


def test_ratios_are_coloured_from_one_side_to_the_other() -> None:
    """White where nobody is better; a factor of 2 or more in full colour."""
    assert diverging(1.0) == "#ffffff"
    assert diverging(2.0) == diverging(9.0) == "#56a062"
    assert diverging(0.5) == diverging(0.0) == "#cd564c"


def test_sheets_name_what_was_missed() -> None:
    """And the same rows go to Markdown, with a bar inside a name written otherwise."""
    found = map_verdict(MADE_UP)
    assert found is not None
    capacities, ratios = map_sheets(MADE_UP, found)
    assert capacities.rows[0][-1] == "32"
    assert [row[-1] for row in ratios.rows] == ["", "missed"]
    assert "| a / b | only | 10 | 21 | 32 |" in capacities.markdown()
    assert len({line.count("|") for line in ratios.markdown().splitlines()[2:]}) == 1


def test_a_table_of_systems_shows_what_was_seen_at_capacity() -> None:
    """A dash where nothing was."""
    sheet = system_sheet(MADE_UP)
    row = dict(zip(sheet.heads, sheet.rows[0], strict=True))
    assert row["devices served"] == "10 +- 0"
    assert row["goodput at 1x capacity"] == "20 +- 0"


def test_bars_are_told_with_what_was_reached() -> None:
    """In words and for machines alike."""
    found = map_verdict(MADE_UP)
    assert found is not None
    told = bars(found)
    assert list(told["missed"]) == ["c & d"]
    assert told["most_over_centralized"]["a | b"][0] == pytest.approx(3.15)
    assert "1 of 2 cells: c & d" in "\n".join(verdict_lines(found))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset that takes no time."""
    whole = tiny_study(seeds=(0,))
    whole = replace(
        whole,
        cells=tuple(replace(cell, labels={"size": cell.name, "kind": "only"}) for cell in whole.cells),
        systems={name: SYSTEMS[name] for name in ("centralized", "wisp-plus")} | {ORACLE: oracle.ORACLE},
        rows=("size",),
        columns=("kind",),
    )
    monkeypatch.setattr(app, "PRESETS", {"tiny": lambda: whole})


@pytest.mark.usefixtures("tiny")
def test_a_study_writes_tables_maps_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line on stdout is the JSON that is on disk, and a second run gives the same."""
    outputs = []
    for _ in range(2):
        run(StudyOptions("tiny", tmp_path, json_output=True))
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]) == json.loads((tmp_path / "tiny.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {
        "points.jsonl",
        "tiny.json",
        "tiny.md",
        "tiny-winner.svg",
        "tiny-ratio.svg",
    }


@pytest.mark.usefixtures("tiny")
def test_the_json_says_what_is_an_oracle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that nobody takes it for a system."""
    run(StudyOptions("tiny", tmp_path, json_output=True))
    summary = json.loads(capsys.readouterr().out)
    for cell in summary["cells"].values():
        assert {name: of["oracle"] for name, of in cell["systems"].items()} == {
            "centralized": False,
            "wisp-plus": False,
            "oracle": True,
        }
    assert summary["bars"]["over_oracle"] > 0.0


@pytest.mark.parametrize("name", ["quick", "map-16", "map"])
def test_maps_are_bounded_by_the_oracle(name: str) -> None:
    """By the name under which verdicts look for it."""
    assert PRESETS[name]().systems[ORACLE] == oracle.ORACLE


@pytest.mark.usefixtures("tiny")
def test_what_is_not_there_is_refused_by_name() -> None:
    """Presets, systems of a preset, and numbers of seeds."""
    with pytest.raises(ConfigError, match="unknown study 'large': there are tiny"):
        chosen(StudyOptions("large"))
    with pytest.raises(ConfigError, match="unknown system of this study 'sled': there are centralized"):
        chosen(StudyOptions("tiny", systems=("sled",)))
    with pytest.raises(ConfigError, match="at least 1 seed"):
        chosen(StudyOptions("tiny", seeds=0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound(name: str) -> None:
    """They can be built, keep to the reported seeds, and a map has one cell in each place."""
    study = PRESETS[name]()
    assert study.name == name
    assert max(study.seeds) < 1000
    assert len(study.cells) <= 48
    if study.rows:
        places = [tuple(cell.labels[axis] for axis in (*study.rows, *study.columns)) for cell in study.cells]
        assert len(set(places)) == len(places)


def test_the_small_map_is_a_part_of_the_map() -> None:
    """Its points need not be measured again."""
    whole = {cell.name: cell.scenario for cell in PRESETS["map"]().cells}
    part = {cell.name: cell.scenario for cell in PRESETS["map-16"]().cells}
    assert len(part) == 16
    assert all(whole[name] == scenario for name, scenario in part.items())
