"""The transformers engine keeps what every target engine promises."""

from __future__ import annotations

from pathlib import Path

from tests.engines import contract
from wisp.engines.packed.loading import LoadOptions
from wisp.engines.target import TransformersTarget


def load(folder: Path, kv_tokens: int) -> TransformersTarget:
    return TransformersTarget.load(str(folder), LoadOptions(device="cpu", kv_gib=contract.kv_gib(kv_tokens)))


class TestGreedy(contract.GreedyContract):
    load = staticmethod(load)


class TestSessions(contract.SessionContract):
    load = staticmethod(load)
    num_draws = 2_000
    """The sampler's own tests draw more."""


class TestPressure(contract.PressureContract):
    load = staticmethod(load)
