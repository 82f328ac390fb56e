"""vLLM keeps what every target engine promises, over its own process, on vLLM's build for CPUs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.engines import contract, tiny_models
from tests.engines.driving import drive, request
from tests.engines.vllm import needs_vllm
from wisp.bench.vllm.plain import PlainVllm
from wisp.engines.vllm.settings import VllmSettings
from wisp.engines.vllm.target import VllmTarget

pytestmark = [needs_vllm, pytest.mark.timeout(300)]


def settings(folder: Path, kv_tokens: int) -> VllmSettings:
    return VllmSettings(
        str(folder),
        kv_gib=contract.kv_gib(kv_tokens + 32),  # vLLM keeps one page for itself
        max_requests=64,
        max_new_tokens=512,
        max_draft_tokens=8,
    )


def load(folder: Path, kv_tokens: int) -> VllmTarget:
    return VllmTarget.load(settings(folder, kv_tokens))


class TestGreedy(contract.GreedyContract):
    load = staticmethod(load)

    def test_output_is_that_of_plain_vllm(self, checkpoint: contract.Checkpoint, target: VllmTarget) -> None:
        """Of vLLM's own scheduler and sampler, without drafts."""
        rng = np.random.default_rng(5)
        prompts = [tiny_models.prompt(rng, int(length)) for length in rng.integers(1, 120, 12)]
        with closing(PlainVllm(settings(checkpoint.folder, 8192))) as plain:
            outputs = plain.generate(prompts, 40)
        truth = {
            f"vllm {i}": [*prompt, *output] for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
        }
        for session_id, tokens in truth.items():
            target.open(session_id, "owner", request(tokens[:-40], 40))
        drive(target, truth, seed=6)
        assert {session_id: list(target.history(session_id)) for session_id in truth} == truth
        for session_id in truth:
            target.close(session_id)


class TestSessions(contract.SessionContract):
    load = staticmethod(load)


class TestPressure(contract.PressureContract):
    load = staticmethod(load)
