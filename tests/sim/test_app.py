"""`wisp simulate`: options, tables, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wisp.errors import ConfigError
from wisp.policy.systems import SYSTEMS
from wisp.sim.app import COMPARED, run_simulation
from wisp.sim.machine import MachineOptions, machine_of
from wisp.sim.options import SimulationOptions, scenario_of
from wisp.sim.simulator import simulate

QUICK = SimulationOptions(
    machine=MachineOptions(model="qwen3-8b"),
    systems=("centralized", "sled-fcfs"),
    devices=4,
    output_tokens=8.0,
    prompt_tokens=16.0,
    think=1.0,
    warmup=1.0,
    duration=4.0,
    slo="2,4",
)


def test_a_run_is_shown_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each system, marked as simulated; wide enough for a terminal of 80 columns."""
    run_simulation(QUICK)
    shown = capsys.readouterr().out
    assert "Simulated" in shown
    assert "sled-fcfs" in shown
    assert "attained" in shown


def test_a_drafter_beside_the_target_is_named_with_who_makes_use_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of it is said where nobody does."""
    run_simulation(replace(QUICK, systems=("centralized", "wisp-plus")))
    assert "; beside it qwen3-0.6b, for wisp-plus" in capsys.readouterr().err
    run_simulation(replace(QUICK, systems=("centralized", "wisp-plus-edge")))
    assert "beside it" not in capsys.readouterr().err


def test_the_same_seed_gives_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object; another seed gives another."""
    outputs = []
    for seed in (1, 1, 2):
        run_simulation(replace(QUICK, json_output=True, seed=seed))
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert "qwen3-8b" in json.loads(outputs[0])["machine"]
    systems = json.loads(outputs[0])["systems"]
    assert list(systems) == ["centralized", "sled-fcfs"]
    assert set(systems["centralized"]["attainment_by_class"]) == {"2/s", "4/s"}


def test_verifiers_are_lost_and_devices_vanish_as_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Their sessions are opened again."""
    cluster = replace(QUICK, verifiers=2, placement="hash", systems=("fixed",), output_tokens=64.0, json_output=True)
    for options in (replace(cluster, lose=("0@2-3", "1@3.5")), replace(cluster, disconnects=60.0, away=0.1)):
        run_simulation(options)
        assert json.loads(capsys.readouterr().out)["systems"]["fixed"]["num_resumed"] > 0


@pytest.mark.parametrize("text", ["0", "x@3", "0@3-2", "0@", "-1@3"])
def test_a_loss_that_cannot_be_is_refused(text: str) -> None:
    """With an example of one that can, or with its values."""
    with pytest.raises(ConfigError, match=r"0@40-60|lost at a time"):
        scenario_of(replace(QUICK, lose=(text,)), machine_of(QUICK.machine))


def test_capacity_is_searched_over_paired_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    """A table with ratios, or JSON with every seed's figures; goodput of the fleet served, and of the one given."""
    small = replace(QUICK.machine, kv_tokens=60)
    slow = replace(QUICK, machine=small, capacity=True, seeds=2, first_token=1.0, systems=("centralized",))
    run_simulation(slow)
    captured = capsys.readouterr()
    assert "by seed" in captured.out
    assert "centralized, seed 1: " in captured.err
    run_simulation(replace(slow, json_output=True))
    (found,) = json.loads(capsys.readouterr().out)["systems"].values()
    assert found["capacity"] == sum(one["num_devices"] for one in found["per_seed"]) / 2 > 0
    assert found["goodput"] == pytest.approx(sum(one["goodput"] for one in found["per_seed"]) / 2)
    first = simulate(scenario_of(slow, machine_of(small)), SYSTEMS["centralized"], 0)
    assert found["per_seed"][0]["goodput_of_fleet"] == first.goodput > 0.0


def test_open_arrivals_and_traces_replace_the_closed_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the rate, or at the times, that were given."""
    run_simulation(replace(QUICK, rate=5.0, systems=("fixed",), json_output=True))
    assert 10 <= json.loads(capsys.readouterr().out)["systems"]["fixed"]["num_sessions"] <= 30
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(_row(time)) + "\n" for time in (0, 2000, 3000, 3500, 6000)))
    run_simulation(replace(QUICK, traces=(path,), systems=("fixed",), json_output=True))
    assert json.loads(capsys.readouterr().out)["systems"]["fixed"]["num_sessions"] == 3


def test_recorded_lengths_are_drawn_from(tmp_path: Path) -> None:
    """Long sessions can be left out; those that would not fit into the KV cache have to be."""
    path = tmp_path / "lengths.jsonl"
    rows = [{"timestamp": 0, "input_length": length, "output_length": 7} for length in (5, 50, 500_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = replace(QUICK, lengths=(path,))
    machine = machine_of(options.machine)
    with pytest.raises(ConfigError, match=r"1 of 3 recorded sessions need more than the .* tokens of the KV cache"):
        scenario_of(options, machine)
    workload = scenario_of(replace(options, longest=57), machine).workload
    rng = np.random.default_rng(0)
    drawn = {workload.script(rng).num_prompt_tokens for _ in range(50)}
    assert drawn == {5, 50}
    assert workload.longest_output == 7
    with pytest.raises(ConfigError, match="no recorded session has at most 3 tokens"):
        scenario_of(replace(options, longest=3), machine)


def _row(time: int) -> dict[str, int]:
    return {"timestamp": time, "input_length": 20, "output_length": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": ("telepathy",)}, "unknown system 'telepathy'"),
        ({"slo": "fast"}, "SLO classes are speeds"),
        ({"slo": "0"}, "must be positive"),
        ({"rtt_ms": "far"}, "a range is LOW-HIGH"),
        ({"rtt_ms": "60-10"}, "low <= high"),
        ({"max_batch": 0}, "max-batch must be at least 1"),
        ({"rate": 1.0, "traces": (Path("a.csv"),)}, "neither --rate nor --lengths"),
        ({"lengths": (Path("a.csv"),), "traces": (Path("a.csv"),)}, "neither --rate nor --lengths"),
        ({"rate": 1.0, "capacity": True}, "needs a closed fleet"),
        ({"seeds": 0, "capacity": True}, "seeds must be at least 1"),
    ],
)
def test_wrong_options_are_refused(change: dict[str, object], message: str) -> None:
    """With the value and what there is."""
    with pytest.raises(ConfigError, match=message):
        run_simulation(replace(QUICK, **change))  # type: ignore[arg-type]


def test_some_systems_are_run_where_none_is_named_and_all_where_all_are(capsys: pytest.CaptureFixture[str]) -> None:
    """In the table's order."""
    for named, run in (((), COMPARED), (("all",), SYSTEMS)):
        run_simulation(replace(QUICK, systems=named, json_output=True))
        assert list(json.loads(capsys.readouterr().out)["systems"]) == list(run)


def test_a_trace_of_the_run_is_written_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one run; the report is the same."""
    path, told = tmp_path / "run.json", replace(QUICK, systems=("wisp",), json_output=True)
    run_simulation(told)
    run_simulation(replace(told, chrome_trace=path))
    assert len(set(capsys.readouterr().out.splitlines())) == 1
    assert json.loads(path.read_text())["traceEvents"]
    with pytest.raises(ConfigError, match="no trace can be written to"):
        run_simulation(replace(told, chrome_trace=tmp_path / "nowhere" / "run.json"))
    for more in ({"systems": ()}, {"capacity": True}):
        with pytest.raises(ConfigError, match="a trace is of one run"):
            run_simulation(replace(told, chrome_trace=path, **more))


def test_the_command_needs_the_core_install_only() -> None:
    """Neither torch nor gRPC nor an event loop is imported."""
    program = (
        "import sys; from wisp.cli import app\n"
        "app(['simulate', '--devices', '2', '--duration', '1', '--warmup', '0', '--system', 'fixed', '--json'],"
        " standalone_mode=False)\n"
        "print(sorted({'torch', 'grpc', 'transformers', 'structlog', 'wisp.engines'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    result, imported = done.stdout.splitlines()
    assert json.loads(result)["systems"]
    assert imported == "[]"
