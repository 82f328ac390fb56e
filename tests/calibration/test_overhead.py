"""What a server takes beside its batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wisp.calibration.overhead import ServerOverhead, fit_overhead
from wisp.errors import FormatError
from wisp.formats.batch_log import LoggedBatch, LoggedMember
from wisp.policy.batch_time import BatchShape, BatchTimeModel

ENGINE = BatchTimeModel(0.01, 1e-4)
WITHIN = BatchTimeModel(0.002, 5e-5, per_request_s=1e-3)
AFTER = BatchTimeModel(0.001, 0.0, per_request_s=3e-4)
SHAPE = BatchShape.of_members([(4, 100)] * 8)


def server_log(number: int, waited: float = 0.0) -> list[LoggedBatch]:
    """Of a server that takes WITHIN and AFTER beside ENGINE, and sleeps before each batch."""
    rng, now, batches = np.random.default_rng(0), 0.0, []
    for _ in range(number):
        members = tuple(LoggedMember(int(rng.integers(1, 9)), 100, True, now) for _ in range(int(rng.integers(1, 33))))
        batch = LoggedBatch(now + waited, 0.0, 0.0, False, members, waited)
        elapsed = ENGINE.predict(batch.shape) + WITHIN.predict(batch.shape)
        batches.append(LoggedBatch(batch.started, elapsed, 0.0, False, members, waited))
        now = batch.started + elapsed + AFTER.predict(batch.shape)
    return batches


@pytest.mark.parametrize("waited", [0.0, 0.5])
def test_what_a_server_takes_is_found_in_itsserver_log(waited: float) -> None:
    """However long it waits between batches."""
    found = fit_overhead(server_log(200, waited), ENGINE.predict)
    assert found.within.coefficients == pytest.approx(WITHIN.coefficients, abs=1e-6)
    assert found.after.coefficients == pytest.approx(AFTER.coefficients, abs=1e-6)


def test_a_server_that_takes_no_time_has_none() -> None:
    """Nor a negative one where the engine is faster than it was measured."""
    found = fit_overhead(server_log(200), lambda _: 1.0)
    assert found.within.predict(SHAPE) == 0.0


def test_batches_last_longer_on_the_server() -> None:
    """By what it adds within them."""
    on_server = fit_overhead(server_log(200), ENGINE.predict).on(ENGINE.predict)
    assert on_server(SHAPE) == pytest.approx(ENGINE.predict(SHAPE) + WITHIN.predict(SHAPE))


def test_batches_with_drafts_of_the_server_say_nothing_of_its_own_time() -> None:
    """They took the drafter's as well."""
    batches = server_log(400)
    mixed = [replace(one, elapsed=one.elapsed + 0.1, drafted=True) if i % 2 else one for i, one in enumerate(batches)]
    assert fit_overhead(mixed, ENGINE.predict).within.coefficients == pytest.approx(WITHIN.coefficients, abs=1e-6)


def test_a_short_log_is_refused() -> None:
    """A few batches say nothing of means."""
    with pytest.raises(FormatError, match="50 batches is too short"):
        fit_overhead(server_log(50), ENGINE.predict)


def test_what_was_found_can_be_read() -> None:
    """In milliseconds."""
    text = str(ServerOverhead(WITHIN, AFTER))
    assert text == (
        "2 + 1 per request + 0.05 per position ms within a batch and 1 + 0.3 per request + 0 per position ms after it"
    )
