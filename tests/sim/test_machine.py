"""The machine that `wisp simulate` is told of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.calibration.test_measured import sweep
from tests.calibration.test_overhead import AFTER, server_log
from tests.formats.test_calibration import CALIBRATION
from wisp.calibration.measured import MeasuredBatchTime
from wisp.errors import ConfigError, FormatError
from wisp.formats.batch_log import header_line
from wisp.formats.calibration import BatchSample
from wisp.policy.batch_time import BatchShape
from wisp.policy.systems import SYSTEMS
from wisp.sim.estimation import initial_model
from wisp.sim.hardware import GPUS, MODELS, Roofline, noisy
from wisp.sim.machine import MachineOptions, machine_of
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import Simulation

SHAPE = BatchShape.of_members([(5, 100), (1, 700)])


def _profile(tmp_path: Path, samples: Sequence[BatchSample] | None = None) -> str:
    path = tmp_path / "profile.json"
    replace(CALIBRATION, samples=tuple(samples or sweep(80))).save(path)
    return str(path)


def test_a_machine_is_a_roofline_unless_something_was_measured() -> None:
    """With the memory of its GPU, and a drafter beside the target."""
    machine, expected = machine_of(MachineOptions()), Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])
    assert machine.batch_time == expected
    assert machine.kv_capacity_tokens == expected.kv_capacity_tokens
    assert machine.server_drafter is not None
    assert "roofline" in machine.caption


def test_models_on_disk_are_shapes_too(tmp_path: Path) -> None:
    """By the path of their config.json."""
    config = tmp_path / "config.json"
    shape = MODELS["qwen3-8b"]
    keys = {
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary_size,
    }
    config.write_text(json.dumps(keys))
    assert machine_of(MachineOptions(model=str(config))).batch_time == Roofline(GPUS["a100-80gb"], shape)


def test_the_shipped_profile_brings_its_gpu_and_model() -> None:
    """Their memory decides how much is cached."""
    machine = machine_of(MachineOptions(profile="qwen3-32b-rtx-pro-6000"))
    assert isinstance(machine.batch_time, MeasuredBatchTime)
    assert machine.kv_capacity_tokens == Roofline(GPUS["rtx-pro-6000"], MODELS["qwen3-32b"]).kv_capacity_tokens
    assert machine.caption.startswith("derived batch times, qwen3-32b in bfloat16 on rtx-pro-6000")


def test_a_profile_of_an_unknown_machine_needs_to_be_told_its_memory(tmp_path: Path) -> None:
    """In tokens, or as a GPU and a model."""
    profile = _profile(tmp_path)
    with pytest.raises(ConfigError, match=r"measured with m on cpu, whose memory is not known.*--kv-tokens"):
        machine_of(MachineOptions(profile=profile))
    told = machine_of(MachineOptions(profile=profile, kv_tokens=5000))
    assert (told.kv_capacity_tokens, told.server_drafter) == (5000, None)
    with pytest.raises(ConfigError, match="how fast the host is reached is not known"):
        machine_of(MachineOptions(profile=profile, kv_tokens=5000, swap=True))
    named = machine_of(MachineOptions(profile=profile, gpu="h100", model="qwen3-8b"))
    assert named.kv_capacity_tokens == Roofline(GPUS["h100"], MODELS["qwen3-8b"]).kv_capacity_tokens


def test_the_estimator_starts_with_the_half_that_the_machine_does_not_know(tmp_path: Path) -> None:
    """And not with a sweep of the machine itself."""
    machine = machine_of(MachineOptions(profile=_profile(tmp_path), kv_tokens=1))
    assert isinstance(machine.batch_time, MeasuredBatchTime)
    assert initial_model(machine.batch_time) == machine.batch_time.estimated


def test_noise_is_drawn_from_the_repeats_of_a_profile(tmp_path: Path) -> None:
    """The same for the same seed, and around what the batch takes; without noise nothing is drawn."""
    samples = [BatchSample(one.members, (one.time, 0.8 * one.time, 1.3 * one.time)) for one in sweep(80)]
    options = MachineOptions(profile=_profile(tmp_path, samples), kv_tokens=1, batch_noise=True)
    machine = machine_of(options)
    assert set(np.round(machine.noise, 6)) == {0.8, 1.0, 1.3}
    first, second = (noisy(machine.batch_time, machine.noise, np.random.default_rng(1)) for _ in range(2))
    times = [first(SHAPE) for _ in range(300)]
    assert times == [second(SHAPE) for _ in range(300)]
    assert set(np.round(np.array(times) / machine.batch_time(SHAPE), 6)) == {0.8, 1.0, 1.3}
    assert machine_of(replace(options, batch_noise=False)).noise == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MachineOptions(gpu="abacus"), "unknown GPU 'abacus': there are a100-80gb"),
        (MachineOptions(model="eliza"), "unknown model 'eliza'"),
        (MachineOptions(server_draft="eliza"), "unknown model 'eliza'"),
        (MachineOptions(batch_noise=True), "give --profile with --batch-noise"),
        (MachineOptions(profile="qwen3-32b-rtx-pro-6000", batch_noise=True), "no three measurements"),
        (MachineOptions(server_log=Path("log.jsonl")), "give --profile with --server-log"),
        (MachineOptions(kv_tokens=0), "at least 1 token"),
        (MachineOptions(profile="qwen3-32b-rtx-pro-6000", model="eliza"), "unknown model 'eliza'"),
    ],
)
def test_wrong_options_are_refused(options: MachineOptions, message: str) -> None:
    """With the value and what to do."""
    with pytest.raises(ConfigError, match=message):
        machine_of(options)


def test_a_profile_that_is_too_small_is_refused(tmp_path: Path) -> None:
    """It would be a guess."""
    with pytest.raises(FormatError, match="too few to stand for hardware"):
        machine_of(MachineOptions(profile=_profile(tmp_path, sweep(10)), kv_tokens=1))


def test_noise_lengthens_batches_but_not_what_they_are_judged_by() -> None:
    """Every batch takes twice its time; interference is told by the hardware itself."""
    quiet = Scenario(lambda shape: 0.01 + 1e-4 * shape.num_new, num_devices=4, warmup=0.0, duration=20.0)
    loud = replace(quiet, batch_noise=(2.0,))
    simulations = [Simulation(scenario, SYSTEMS["centralized"], 0) for scenario in (quiet, loud)]
    for simulation in simulations:
        simulation.run()
    shares = [one.observer.seen.engine_time / one.observer.seen.num_batches for one in simulations]
    assert shares[1] == pytest.approx(2.0 * shares[0], rel=0.05)
    assert max(simulations[1].observer.seen.interference) < 0.06


def test_a_servers_log_adds_its_own_time(tmp_path: Path) -> None:
    """As it is fitted to the log."""
    log = tmp_path / "batches.jsonl"
    log.write_text(header_line() + "".join(batch.line() for batch in server_log(200)))
    machine = machine_of(MachineOptions(profile=_profile(tmp_path), kv_tokens=1, server_log=log))
    assert machine.overhead is not None
    assert str(machine.overhead) in machine.caption
    assert machine.overhead.after.coefficients == pytest.approx(AFTER.coefficients, abs=1e-6)
