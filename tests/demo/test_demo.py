"""`wisp demo` as its users run it: processes of its own, real models, the proof at the end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from wisp.demo.pair import heldout_prompts
from wisp.errors import FormatError


def test_every_text_of_the_demo_is_the_targets_own() -> None:
    """Exit code 0 and a JSON line that says so, for greedy decoding and seeded sampling."""
    command = [sys.executable, "-m", "wisp", "demo", "--json", "--tokens", "32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["identical"] is True
    assert summary["prompts"] == 12
    assert summary["tokens"] >= 300
    assert 0.1 < summary["accepted_share"] < 1.0
    assert summary["device_speed"] == "emulated"


def test_the_heldout_prompts_are_there() -> None:
    """Enough of them for every device, none empty."""
    prompts = heldout_prompts()
    assert len(prompts) >= 6
    assert all(prompt.text.strip() and prompt.file.endswith(".py") for prompt in prompts)


def test_a_broken_prompt_file_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What is wrong with a file is said with its name."""
    path = tmp_path / "heldout.json"
    path.write_text('[{"file": "a.py"}]')
    with pytest.raises(FormatError, match=r"heldout\.json"):
        heldout_prompts(path)
