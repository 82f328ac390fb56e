"""A checkpoint's fingerprint is that of the loaded model, whoever loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.engines import tiny_models
from wisp.demo.pair import TARGET
from wisp.engines.fingerprint import checkpoint_fingerprint, weights_fingerprint


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_files_and_memory_have_one_fingerprint(tmp_path: Path, name: str) -> None:
    """Tied or not, biases or none."""
    folder = tiny_models.save(tmp_path, name)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert checkpoint_fingerprint(str(folder)) == weights_fingerprint(loaded)


def test_the_demo_targets_fingerprint() -> None:
    """It is stored in half precision."""
    assert checkpoint_fingerprint(str(TARGET)) == weights_fingerprint(AutoModelForCausalLM.from_pretrained(TARGET))


def test_another_training_has_another_fingerprint(tmp_path: Path) -> None:
    """Of the same shapes."""
    folders = [tiny_models.save(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    assert len({checkpoint_fingerprint(str(folder)) for folder in folders}) == 2


def test_files_that_do_not_tell_have_none(tmp_path: Path) -> None:
    """Rather than a wrong one."""
    folder = tiny_models.save(tmp_path)
    (folder / "model.safetensors").unlink()
    assert checkpoint_fingerprint(str(folder)) == ""
