"""A whole comparison: two systems, two devices, over the real wire, on emulated batches of a few milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.traces import save_times, save_trace
from wisp.bench.live.app import POINTS, REPORT, SUMMARY, run_bench
from wisp.bench.live.presets import BenchOptions
from wisp.bench.live.servers import Served
from wisp.errors import FormatError

SYSTEMS = ("centralized", "sled-fcfs")


def _options(folder: Path, **changes: object) -> BenchOptions:
    given = {
        "engine": "timed",
        "systems": SYSTEMS,
        "trace": folder / "trace.jsonl",
        "batch_times": str(folder / "times.json"),
        "prompt_tokens": 16,
        "slo_classes": ["loose=1,30"],
        "draft_speed": "1000",
        "rtt_ms": "1",
        "think": 0.0,
        "devices": 2,
        "max_devices": 2,
        "points": 1,
        "warmup": 0.1,
        "duration": 0.5,
        "drain": 10.0,
    }
    return BenchOptions(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    save_trace(made / "trace.jsonl")
    save_times(made / "times.json")
    return made


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    """Of one comparison."""
    result = folder / "out"
    assert run_bench(_options(folder), result, json_output=False) == 0
    return result


@pytest.fixture(scope="module")
def systems(out: Path) -> dict[str, dict[str, object]]:
    """Its summary, by system."""
    found: dict[str, dict[str, object]] = json.loads((out / SUMMARY).read_text())["systems"]
    return found


def _at_load(systems: dict[str, dict[str, object]], system: str) -> dict[str, float]:
    (measures,) = systems[system]["at_common_load"]  # type: ignore[misc]
    return measures  # type: ignore[no-any-return]


def test_every_system_has_served_all_devices(systems: dict[str, dict[str, object]]) -> None:
    """Nothing is late, nothing fails, texts are the recorded ones."""
    for system in SYSTEMS:
        measures = _at_load(systems, system)
        assert systems[system]["capacity"] == 2
        assert systems[system]["capacity_at_least"]
        assert measures["num_sessions"] > 0
        assert (measures["attainment"], measures["num_unfinished"], measures["num_diverged"]) == (1.0, 0, 0)
        assert measures["goodput"] > 0.0


def test_drafts_are_the_recorded_ones(systems: dict[str, dict[str, object]]) -> None:
    """Two of three are right wherever the output goes on for so long; nobody drafts under centralized."""
    assert _at_load(systems, "centralized")["draft_length"] == 0.0
    sled = _at_load(systems, "sled-fcfs")
    assert 1.0 < sled["draft_length"] <= 3.0
    assert 0.5 <= sled["accepted_share"] < 1.0


def test_the_servers_account_for_their_batches(systems: dict[str, dict[str, object]]) -> None:
    """What the batch log tells: a sleep never ends early, nobody is busier than always, a token takes a position."""
    for system in SYSTEMS:
        measures = _at_load(systems, system)
        assert measures["batch_time_ratio"] > 0.9
        assert 0.0 < measures["utilisation"] < 1.1
        assert measures["positions_per_token"] >= 1.0
        assert 1.0 <= measures["requests_per_batch"] <= 2.0


def test_the_report_is_written(out: Path) -> None:
    """Beside the points."""
    assert "verdicts replayed, timing emulated" in (out / REPORT).read_text()


def test_a_finished_run_is_not_measured_again(
    folder: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same points, the same summary, on the last line of standard output; and no server is needed."""
    monkeypatch.setattr(Served, "accept", lambda *_: pytest.fail("a server was asked for"))
    points = (out / POINTS).read_text()
    systems = json.loads((out / SUMMARY).read_text())["systems"]
    assert run_bench(_options(folder), out, json_output=True) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["systems"] == systems
    assert (out / POINTS).read_text() == points


def test_another_comparison_does_not_go_into_the_same_folder(folder: Path, out: Path) -> None:
    """Its points would be mixed up."""
    with pytest.raises(FormatError, match="other settings"):
        run_bench(_options(folder, seed=1), out, json_output=False)


def test_without_time_there_is_nothing_to_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the exit status says so."""
    assert run_bench(_options(folder, minutes=0.001), None, json_output=True) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cells"] == {}


def test_later_questions_find_their_context_cached(folder: Path, tmp_path: Path) -> None:
    """Positions per token say how much the server computed: a context read for each session would be ten times as much."""
    options = _options(folder, systems=("centralized",), context_tokens=512)
    assert run_bench(options, tmp_path / "out", json_output=False) == 0
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    measures = _at_load(summary["systems"], "centralized")
    assert measures["num_unfinished"] == 0
    assert measures["positions_per_token"] < 5.0
