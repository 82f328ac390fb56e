"""Devices and their sessions, drawn from a seed."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from tests.bench.traces import records
from wisp.bench.live.fleet import Ask, DeviceScript, FleetModel, Workload
from wisp.errors import ConfigError
from wisp.sim.workload import Spread, TracedSession

FLEET = FleetModel(Spread(10.0, 50.0), Spread(0.01, 0.06))
WORKLOAD = Workload(records(), ["fast", "normal"])


def _asks(seed: int = 3, index: int = 5, workload: Workload = WORKLOAD, number: int = 12) -> list[Ask]:
    return list(islice(DeviceScript(FLEET, workload, seed, index).asks(), number))


def test_a_device_is_the_same_whenever_it_is_drawn() -> None:
    """So systems and fleet sizes are compared on the same devices and sessions."""
    assert DeviceScript(FLEET, WORKLOAD, 3, 5).traits == DeviceScript(FLEET, WORKLOAD, 3, 5).traits
    assert _asks() == _asks()


def test_devices_and_seeds_differ() -> None:
    """In traits and in sessions."""
    traits = {DeviceScript(FLEET, WORKLOAD, seed, index).traits for seed in (0, 1) for index in (0, 1)}
    assert len(traits) == 4
    assert _asks(index=5) != _asks(index=6)


def test_no_prompt_comes_again_before_each_has_come() -> None:
    """A device would find it in its own cache."""
    prompts = [ask.record.prompt for ask in _asks(number=8)]
    assert sorted(prompts[:4]) == sorted(prompts[4:]) == [0, 1, 2, 3]


def test_the_lengths_of_a_public_trace_choose_prompt_and_output() -> None:
    """The nearest prompt, and no more output than is recorded."""
    lengths = (TracedSession(0.0, 10, 3), TracedSession(1.0, 500, 400))
    asks = _asks(workload=Workload(records(), ["fast"], lengths), number=20)
    assert {(ask.record.num_prompt_tokens, ask.max_tokens) for ask in asks} == {(10, 3), (11, 6)}


CONVERSATIONS = Workload(records(12), ["fast"], questions=4)


def test_a_device_asks_all_questions_of_a_context_before_the_next() -> None:
    """After those of the context that it is at when the load begins."""
    script = DeviceScript(FLEET, CONVERSATIONS, 3, 5)
    contexts = [ask.record.prompt // 4 for ask in islice(script.asks(), 24)]
    changes = [index for index, (one, later) in enumerate(pairwise(contexts), 1) if one != later]
    assert len(changes) > 2
    assert {later - one for one, later in pairwise(changes)} == {4}


def test_conversations_are_under_way_at_points_of_their_own() -> None:
    """Some devices have one question left when the load begins, some all four."""
    lengths = set()
    for index in range(40):
        contexts = [ask.record.prompt // 4 for ask in islice(DeviceScript(FLEET, CONVERSATIONS, 3, index).asks(), 5)]
        lengths.add(next(number for number, context in enumerate(contexts) if context != contexts[0]))
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize(
    "build",
    [
        lambda: FleetModel(Spread(0.0, 0.0), Spread(0.01, 0.06)),
        lambda: FleetModel(Spread(10.0, 50.0), Spread(0.01, 0.06), think_time=-1.0),
        lambda: Workload([], ["fast"]),
    ],
)
def test_fleets_that_cannot_be_are_refused(build: object) -> None:
    """Before anything starts."""
    assert callable(build)
    with pytest.raises(ConfigError):
        build()
