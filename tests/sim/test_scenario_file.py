"""Scenario files, the presets that ship, and what a command line changes of them."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from wisp.cli.simulate import NOT_OF_THE_SCENARIO, simulate
from wisp.errors import UserError
from wisp.sim.keys import BY_NAME, KEYS
from wisp.sim.machine import MachineOptions, machine_of
from wisp.sim.options import SimulationOptions, scenario_of
from wisp.sim.scenario_file import options_of, presets
from wisp.sim.study.paper import FLEET_SIZE, SETTINGS

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return path


def _read(tmp_path: Path, text: str) -> SimulationOptions:
    return options_of(_file(tmp_path, text), None, {})


def test_a_file_says_what_the_options_would(tmp_path: Path) -> None:
    """Numbers where options are texts, lists where they are repeated, paths from where the file is."""
    told = _read(
        tmp_path,
        """
        [server]
        model = "Qwen/Qwen3-8B"
        lose = "0@40"
        [server.setting]
        max_load = 0.9
        [devices]
        rtt-ms = 30
        acceptance-trace = ["a.gz", "b.gz"]
        [sessions]
        slo = [2, 4.5]
        [run]
        system = "wisp"
        ramp = 0
        """,
    )
    assert told == SimulationOptions(
        machine=MachineOptions(model="Qwen/Qwen3-8B"),
        lose=("0@40",),
        settings=("max_load=0.9",),
        rtt_ms="30",
        acceptance_traces=(tmp_path / "a.gz", tmp_path / "b.gz"),
        slo="2,4.5",
        systems=("wisp",),
        ramp=0.0,
    )


def test_profiles_that_ship_go_by_name_and_others_are_beside_the_file(tmp_path: Path) -> None:
    """A profile of one's own is a path."""
    shipped = _read(tmp_path, '[server]\nprofile = "qwen3-32b-rtx-pro-6000"')
    own = _read(tmp_path, '[server]\nprofile = "own.json"')
    assert shipped.machine.profile == "qwen3-32b-rtx-pro-6000"
    assert own.machine.profile == str(tmp_path / "own.json")


def test_what_is_given_overrides_the_file(tmp_path: Path) -> None:
    """And nothing else does: not the options' defaults."""
    path = _file(tmp_path, '[server]\ngpu = "h200"\n[devices]\ndevices = 7\nattempts = 1')
    told = options_of(path, None, {"devices": 9, "system": ["wisp"], "weight-bits": 8})
    assert (told.devices, told.attempts, told.systems) == (9, 1, ("wisp",))
    assert told.machine == MachineOptions(gpu="h200", weight_bits=8)


def test_everything_can_be_said() -> None:
    """Every field of the options has its key, but for what is shown and where."""
    options = {one.name for kind in (SimulationOptions, MachineOptions) for one in fields(kind)}
    shown = {"machine", "json_output", "chrome_trace", "trace_devices", "workers"}
    assert {key.field for key in BY_NAME.values()} == options - shown
    assert len(BY_NAME) == sum(map(len, KEYS.values()))


def test_the_command_has_an_option_for_every_key_with_the_default_that_holds() -> None:
    """The command's defaults are only shown: a run takes those of the options."""
    parameters = inspect.signature(simulate).parameters
    names = {name.replace("_", "-") for name in parameters if name not in NOT_OF_THE_SCENARIO} - {"context"}
    assert names == set(BY_NAME)
    options = SimulationOptions()
    for name, key in BY_NAME.items():
        holder: Any = options if hasattr(options, key.field) else options.machine
        shown, holds = parameters[name.replace("-", "_")].default, getattr(holder, key.field)
        assert shown == (holds if holds != () else None), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[devices]\n\nrtt-ms = 'x'", r"scenario.toml:3: devices.rtt-ms: a range is LOW-HIGH or one number, not 'x'"),
        ("[server]\ngpu = 'abacus'", r"scenario.toml:2: server.gpu: unknown GPU 'abacus': there are a100-80gb"),
        ("[server]\nweight-bits = 8.0", r":2: server.weight-bits: a whole number is wanted, not 8.0"),
        ("[server]\nswap = 1", r":2: server.swap: true or false is wanted, not 1"),
        ("[server]\ngpu = 3", r":2: server.gpu: a text in quotes is wanted, not 3"),
        ("[run]\nduration = true", r":2: run.duration: a number is wanted, not True"),
        ("[run]\nduration = inf", r":2: run.duration: a number is wanted, not inf"),
        ("[run]\nduration = 0", r":2: run.duration: it must be positive, not 0"),
        ("[run]\nseed = -1", r":2: run.seed: it must not be negative, not -1"),
        ("[devices]\nacceptance = 1.5", r":2: devices.acceptance: the acceptance rate must be in 0..1, not 1.5"),
        ("[server]\nlose = [\n  '0@2',\n  'x',\n]", r":2: server.lose: a loss is VERIFIER@FROM"),
        ("[run]\nsystem = ['wisp', 'telepathy']", r":2: run.system: unknown system 'telepathy'"),
        ("[server.setting]\nmax_lode = 1", r":1: server.setting: unknown scheduler setting 'max_lode'"),
        ("[server]\nsetting = 3", r":2: server.setting: a table of NAME = NUMBER is wanted"),
        ("[devices]\n# one\nrtt_ms = 3", r":3: devices.rtt_ms: there is no such key: did you mean rtt-ms\?"),
        ("[devices]\nslo = 3", r":2: devices.slo: there is no such key here: it belongs to \[sessions\]"),
        ("[devices]\ndurations = 3", r":2: devices.durations: .*did you mean duration of \[run\]\?"),
        ("[run]\nxyzzy = 3", r":2: run.xyzzy: there is no such key: there are system, capacity"),
        ("[device]", r":1: device: there is no such table: did you mean devices\?"),
        ("run = 3", r":1: run: it is a table: write \[run\] above its keys"),
        ("[run]\nseed = ", r"scenario.toml:2: Invalid value"),
        ("[run", r"scenario.toml:(1|end): Expected ']'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    """And with what there is, or what was meant."""
    with pytest.raises(UserError, match=message):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rtt-ms": "far"}, "--rtt-ms: a range is LOW-HIGH"),
        ({"system": ["telepathy"]}, "--system: unknown system 'telepathy'"),
        ({"ramp": -1.0}, "--ramp: it must not be negative, not -1"),
    ],
)
def test_a_wrong_option_is_named(given: dict[str, Any], message: str) -> None:
    """Like a key of a file."""
    with pytest.raises(UserError, match=message):
        options_of(None, None, given)


def test_a_scenario_is_one_file(tmp_path: Path) -> None:
    """That is there, or a preset."""
    with pytest.raises(UserError, match="not both"):
        options_of(_file(tmp_path, ""), "paper", {})
    with pytest.raises(UserError, match="cannot read the scenario"):
        options_of(tmp_path / "nowhere.toml", None, {})
    with pytest.raises(UserError, match="unknown preset 'rock': there are paper, quick"):
        options_of(None, "rock", {})


def test_the_papers_preset_is_the_setting_that_its_study_runs() -> None:
    """To the last number."""
    options = options_of(None, "paper", {})
    assert scenario_of(options, machine_of(options.machine)) == SETTINGS["2, 4 tokens/s"]
    assert options.devices == FLEET_SIZE


@pytest.mark.parametrize("path", [*sorted(EXAMPLES.glob("*.toml")), *presets().values()], ids=lambda path: path.stem)
def test_scenarios_that_ship_are_possible(path: Path) -> None:
    """On a machine that is known, with systems by name."""
    options = options_of(path, None, {})
    assert scenario_of(options, machine_of(options.machine)).num_devices == options.devices
    assert options.systems
