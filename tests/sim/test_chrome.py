"""Runs that are watched closely, and the trace that tells of them."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from wisp.policy.systems import SYSTEMS
from wisp.sim.chrome import TracedSimulation
from wisp.sim.cluster import VerifierLoss
from wisp.sim.network import Churn
from wisp.sim.scenario import LIMITS, Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.timeline import AT_SERVER, BATCHES, DOWNLINK, DRAFTING, NUM_TRACKS, PLAYBACK, UPLINK
from wisp.sim.workload import Lengths, Spread, Workload
from wisp.types import SLO

SCENARIO = Scenario(
    lambda shape: 0.02 + 2e-4 * shape.num_new,
    num_verifiers=2,
    losses=(VerifierLoss(1, 3.0, 4.0),),
    num_devices=12,
    fleet=Fleet(Spread(20.0, 40.0), rtt=Spread(0.02, 0.04), churn=Churn(rate=0.5, away=0.1)),
    workload=Workload(Lengths(700.0, 0.5), Lengths(24.0), (SLO("8/s", 8.0, 1.0),), think_time=0.5),
    limits=replace(LIMITS, kv_capacity_tokens=5000),
    warmup=1.0,
    duration=6.0,
    ramp=0.5,
)
NUM_TRACED = 3
Event = dict[str, Any]


def _watched(system: str) -> TracedSimulation:
    simulation = TracedSimulation(SCENARIO, SYSTEMS[system], 0, NUM_TRACED)
    simulation.run()
    return simulation


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """A trace as it is written."""
    path: Path = tmp_path_factory.mktemp("trace") / "run.json"
    _watched("wisp").timeline().save(path)
    content = json.loads(path.read_text())
    assert content["displayTimeUnit"] == "ms"
    return list(content["traceEvents"])


def _tracks(events: list[Event]) -> dict[tuple[int, int], list[Event]]:
    """Slices by process and track, in the order of their beginnings."""
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"] % NUM_TRACKS].append(event)
    return {track: sorted(slices, key=lambda one: one["ts"]) for track, slices in tracks.items()}


def _end(event: Event) -> int:
    return int(event["ts"]) + int(event["dur"])


@pytest.mark.parametrize("system", ["centralized", "sled", "wisp-plus"])
def test_watching_changes_nothing(system: str) -> None:
    """The report is that of a run that nobody watches."""
    watched = TracedSimulation(SCENARIO, SYSTEMS[system], 0, NUM_TRACED).run()
    assert watched == simulate(SCENARIO, SYSTEMS[system], 0)


def test_slices_of_a_track_do_not_overlap(events: list[Event]) -> None:
    """A batch begins when the one before is done, and so with all the others but sessions, which hold what was late."""
    tracks = _tracks(events)
    assert {tid for _, tid in tracks} == {BATCHES, DRAFTING, UPLINK, AT_SERVER, DOWNLINK, PLAYBACK}
    for (_, tid), slices in tracks.items():
        for before, after in pairwise(slices):
            if tid != PLAYBACK:
                assert _end(before) <= after["ts"]
        assert all(one["dur"] > 0 for one in slices if one["name"] != "waiting")


def test_threads_have_numbers_of_their_own(events: list[Event]) -> None:
    """Above 0, where viewers expect the idle thread."""
    threads = [one["tid"] for one in events if one["name"] == "thread_name"]
    assert len(set(threads)) == len(threads) == 2 + 5 * NUM_TRACED
    assert min(threads) > 0


def test_late_tokens_lie_in_their_sessions(events: list[Event]) -> None:
    """One after the other."""
    playback = [slices for (_, tid), slices in _tracks(events).items() if tid == PLAYBACK]
    assert len(playback) == NUM_TRACED
    late = 0
    for slices in playback:
        sessions = [one for one in slices if one["name"] == "session"]
        for one in slices:
            if one["name"] == "late":
                late += 1
                assert any(session["ts"] <= one["ts"] and _end(one) <= _end(session) for session in sessions)
    assert late


def test_times_are_in_microseconds(events: list[Event]) -> None:
    """Whole ones: what a batch took, in ms, is a thousandth of its length; a run of seconds has millions of them."""
    batches = [one for one in events if one.get("name", "").startswith("batch of")]
    assert all(one["dur"] == pytest.approx(one["args"]["taken ms"] * 1e3, abs=1.0) for one in batches)
    assert all(isinstance(one["ts"], int) for one in events if "ts" in one)
    assert SCENARIO.end * 1e6 < max(_end(one) for one in batches) < (SCENARIO.end + SCENARIO.drain) * 1e6


def test_batches_say_who_is_in_them(events: list[Event]) -> None:
    """Members with their positions, and how long the server expected them to take."""
    for one in events:
        if one.get("name", "").startswith("batch of"):
            args = one["args"]
            members = [member.rpartition("+") for member in args["members"].split()]
            assert len(members) == args["requests"] == int(one["name"].split()[-1])
            assert sum(int(positions) for _, _, positions in members) == args["positions"]
            assert args["predicted ms"] > 0.0


def test_a_traced_devices_rounds_are_the_batches_that_it_is_in(events: list[Event]) -> None:
    """Its work at the server begins and ends with a batch; no other device is traced."""
    tracks = _tracks(events)
    ends = {(one["ts"], _end(one)) for (_, tid), slices in tracks.items() if tid == BATCHES for one in slices}
    work = [
        one
        for (_, tid), slices in tracks.items()
        for one in slices
        if tid == AT_SERVER and one["name"] in ("verifying", "decoding", "reading the prompt")
    ]
    assert {one["name"] for one in work} == {"verifying", "decoding", "reading the prompt"}
    # That of a device that came back ends where its new session begins.
    whole = [one for one in work if (one["ts"], _end(one)) in ends]
    assert len(whole) > 0.9 * len(work)
    assert {one["ts"] for one in work} <= {start for start, _ in ends}
    names = {one["args"]["name"] for one in events if one["name"] == "process_name"}
    assert names == {"verifier 0", "verifier 1", "device 0", "device 1", "device 2"}


def test_a_lost_verifier_has_no_batches(events: list[Event]) -> None:
    """While it is away."""
    batches = _tracks(events)[2, BATCHES]
    (lost,) = [one for one in batches if one["name"] == "lost"]
    assert (lost["ts"], _end(lost)) == (3_000_000, 4_000_000)


def test_queue_and_cache_are_counted(events: list[Event]) -> None:
    """Never below nothing, never above what there is; at the end nobody waits."""
    queue = [one["args"]["requests"] for one in events if one["name"] == "queue" and one["pid"] == 1]
    cache = [one["args"]["tokens"] for one in events if one["name"] == "KV cache"]
    assert queue[-1] == min(queue) == 0 < max(queue) <= SCENARIO.num_devices
    assert 0 <= min(cache) < max(cache) <= SCENARIO.limits.kv_capacity_tokens


def test_plain_decoding_has_neither_drafts_nor_expected_times() -> None:
    """First come, first served does not care how long batches take, and its devices only wait."""
    timeline = _watched("centralized").timeline()
    assert {one.predicted for one in timeline.verifiers[0].batches} == {None}
    names = {one["name"] for one in timeline.events() if one["ph"] == "X"}
    assert names >= {"decoding", "waiting", "in flight", "session"}
    assert not names & {"drafting", "verifying"}
