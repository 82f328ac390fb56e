"""The benchmarks measure what they say; how fast it is, is not tested."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from wisp.bench.served import Account, bare_target
from wisp.bench.server import ServerOverhead
from wisp.bench.timing import interleave, ratio
from wisp.bench.workload import run_rounds
from wisp.config import ModelConfig, ServerConfig
from wisp.server.app import start_server


def test_alternatives_take_turns() -> None:
    """One warm-up, then as many turns as asked for, one after the other."""
    turns: list[str] = []
    alternatives = {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}
    with Progress(disable=True) as progress:
        times = interleave(alternatives, 2, progress, "label")
    assert turns == ["a", "b"] * 3
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_of_medians_side_by_side() -> None:
    """Twice as long is 2, whatever the units."""
    result = ratio({"a": [2.0, 2.0, 4.0], "b": [1.0, 1.0, 2.0]}, "a", "b", "label")
    assert (result.ratio, result.spread) == (2.0, 0.0)
    assert result.name == "label: a"


def test_shares_are_in_units_of_a_forward_pass() -> None:
    """Per batch and per round."""
    overhead = ServerOverhead(batch_size=8, forward_time=0.02, between_time=0.001, forward_cpu=0.02, other_cpu=0.004)
    assert overhead.lost_share == pytest.approx(0.05)
    assert overhead.round_share == pytest.approx(0.025)


async def test_rounds_run_through_a_real_server() -> None:
    """The workload gets a verdict for each draft, and the account counts the batches."""
    account = Account()
    config = ServerConfig(ModelConfig("bench"), port=0)
    server = await start_server(bare_target(), config, observe=account.observe)
    try:
        assert await run_rounds(server.address, 4, 20) > 0
    finally:
        await server.stop(0.0)
    assert account.num_requests >= 20
    assert 0 < account.num_batches <= account.num_requests
