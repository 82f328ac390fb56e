"""vLLM keeps what every target engine promises, over its own process, on vLLM's build for CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import contract
from wisp.engines.vllm import versions
from wisp.engines.vllm.settings import VllmSettings
from wisp.engines.vllm.target import VllmTarget

pytestmark = [
    pytest.mark.skipif(versions.installed() is None, reason="vLLM is not installed: `make test-vllm` runs these"),
    pytest.mark.timeout(300),
]


def load(folder: Path, kv_tokens: int) -> VllmTarget:
    settings = VllmSettings(
        str(folder),
        kv_gib=contract.kv_gib(kv_tokens + 32),  # vLLM keeps one page for itself
        max_requests=64,
        max_new_tokens=512,
        max_draft_tokens=8,
    )
    return VllmTarget.load(settings)


class TestGreedy(contract.GreedyContract):
    load = staticmethod(load)


class TestSessions(contract.SessionContract):
    load = staticmethod(load)


class TestPressure(contract.PressureContract):
    load = staticmethod(load)
