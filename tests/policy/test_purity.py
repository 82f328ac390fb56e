"""Policy decides on what it is told: no clock, no chance, no I/O of its own."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.policy import test_scheduler, test_session, test_slo_aware


def _forbidden(*_: object, **__: object) -> None:
    message = "policy read the clock or drew a random number"
    raise AssertionError(message)


def test_policy_runs_without_a_clock_or_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every clock and the global generator patched to raise, sessions and schedulers work as before."""
    for name in ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns"):
        monkeypatch.setattr(time, name, _forbidden)
    monkeypatch.setattr(np.random, "default_rng", _forbidden)
    monkeypatch.setattr(np.random, "random", _forbidden)
    test_scheduler.test_a_long_prompt_is_prefilled_in_chunks()
    test_scheduler.test_whoever_entered_last_makes_room()
    test_slo_aware.test_tails_that_are_not_worth_their_price_are_cut()
    test_session.test_rounds_are_recorded_for_the_accounting()
    test_session.test_the_playback_deadline_follows_the_first_token()
