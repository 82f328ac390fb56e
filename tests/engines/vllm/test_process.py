"""vLLM's process: it idles, it dies and comes back, and it may be several."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.engines import contract
from tests.engines.driving import drive, member, request
from tests.engines.vllm import needs_vllm
from wisp.bench.timing import processor_time
from wisp.engines.vllm.settings import VllmSettings
from wisp.engines.vllm.target import VllmTarget
from wisp.errors import EngineError, ModelError

pytestmark = [needs_vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> contract.Checkpoint:
    return contract.Checkpoint.of(tmp_path_factory.mktemp("process"), "llama")


def load(folder: Path, **settings: object) -> VllmTarget:
    limits = {"max_requests": 8, "max_new_tokens": 256, "max_draft_tokens": 8, "kv_gib": contract.kv_gib(2048)}
    return VllmTarget.load(VllmSettings(str(folder), **{**limits, **settings}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def target(checkpoint: contract.Checkpoint) -> Iterator[VllmTarget]:
    target = load(checkpoint.folder)
    yield target
    target.shutdown()


def test_an_idle_engine_uses_no_processor_time(checkpoint: contract.Checkpoint, target: VllmTarget) -> None:
    """Sessions are open and parked: nothing polls."""
    target.open("parked", "me", request(checkpoint.truth(np.random.default_rng(1), 20, 4)[:20]))
    target.step([member(target, "parked")])
    before = processor_time(target.pid)
    time.sleep(1.0)
    assert processor_time(target.pid) - before < 0.02
    target.close("parked")


def test_a_step_larger_than_was_set_up_for_is_refused(checkpoint: contract.Checkpoint, target: VllmTarget) -> None:
    """Before anything is computed; and longer drafts than that are verified in part."""
    tokens = checkpoint.truth(np.random.default_rng(2), 20, 20)
    for index in range(9):
        target.open(str(index), "me", request(tokens[:20]))
    with pytest.raises(EngineError, match="exceeds the 8"):
        target.step([member(target, str(index)) for index in range(9)])
    outcome = target.step([member(target, "0", tokens[20:32])])[0]
    assert (outcome.num_verified, outcome.num_accepted) == (8, 8)
    for index in range(9):
        target.close(str(index))


def test_sessions_survive_the_death_of_the_process(checkpoint: contract.Checkpoint, target: VllmTarget) -> None:
    """The step that meets it fails, what was cached is gone, and the text goes on as if nothing had been."""
    rng = np.random.default_rng(3)
    truth = {f"survivor {i}": checkpoint.truth(rng, 30 + i, 40) for i in range(3)}
    for session_id, tokens in truth.items():
        target.open(session_id, "me", request(tokens[:-40], 40))
        target.step([member(target, session_id, tokens[-40:-36])])
    os.kill(target.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="status -9"):
        target.step([member(target, "survivor 0")])
    assert [target.num_cached_tokens(session_id) for session_id in truth] == [0, 0, 0]
    target.close("survivor 2")
    del truth["survivor 2"]
    drive(target, truth, seed=4)
    assert {session_id: list(target.history(session_id)) for session_id in truth} == truth
    for session_id in truth:
        target.close(session_id)


def test_a_model_that_cannot_be_rolled_back_is_refused(tmp_path: Path) -> None:
    """By name, and the process is gone."""
    folder = contract.Checkpoint.of(tmp_path, "llama").folder
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("LlamaForCausalLM", "NoSuchModel"))
    with pytest.raises(ModelError, match="NoSuchModel"):
        load(folder)


def test_two_workers_share_a_model(checkpoint: contract.Checkpoint) -> None:
    """Tensor parallelism: both workers run WISP's sampler and decide alike."""
    target = load(checkpoint.folder, tensor_parallel=2)
    try:
        rng = np.random.default_rng(5)
        truth = {f"split {i}": checkpoint.truth(rng, 20 + 30 * i, 24) for i in range(3)}
        for session_id, tokens in truth.items():
            target.open(session_id, "me", request(tokens[:-24], 24))
        drive(target, truth, seed=6)
        assert {session_id: list(target.history(session_id)) for session_id in truth} == truth
        assert target.card.device.startswith("2 x ")
    finally:
        target.shutdown()
