"""What a point shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.bench.traces import record
from wisp.bench.live.devices import OfferedSession
from wisp.bench.live.fleet import Ask
from wisp.bench.live.measures import DriverLoad, Measures, Percentiles, Window, measure
from wisp.errors import FormatError
from wisp.formats.batch_log import LoggedBatch, LoggedMember
from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.controller import FixedLength
from wisp.policy.session import Session, SessionSettings
from wisp.types import SLO, GenerationRequest, SamplingParams, StopRules

FAST = SLO("fast", 10.0, 1.0)
WINDOW = Window(100.0, 110.0)
DRIVER = DriverLoad(5.0, 0.002)
BATCH_TIME = BatchTimeModel(0.010, 0.001).predict


def _session(
    offered: float, times: Sequence[float], *, failure: str | None = None, wrong: bool = False
) -> OfferedSession:
    one = record(0)
    prompt = one.tokens[: one.num_prompt_tokens]
    request = GenerationRequest(prompt, len(prompt), SamplingParams(), StopRules(8))
    session = Session(request, FixedLength(4), SessionSettings(), FAST, offered)
    output = list(one.tokens[one.num_prompt_tokens :][: len(times)])
    if wrong:
        output[-1] += 1
    session.tokens += output
    session.token_times += times
    ended = times[-1] if times else offered
    return OfferedSession(Ask(one, 6, "fast", 0.0), offered, session, ended, failure is None, failure)


def _measure(offered: Sequence[OfferedSession], batches: Sequence[LoggedBatch] = ()) -> Measures:
    return measure(offered, batches, WINDOW, DRIVER, BATCH_TIME)


def test_only_sessions_offered_in_the_window_are_judged() -> None:
    """One before, one in it, one after it."""
    found = _measure([_session(99.0, [99.5]), _session(101.0, [101.5]), _session(110.0, [119.0])])
    assert (found.num_sessions, found.attainment, found.first_token_s.p50) == (1, 1.0, 0.5)


def test_sessions_that_the_window_finds_under_way_are_judged() -> None:
    """Those that have not ended included: a server that is stuck is offered nothing else."""
    dragging = _session(99.0, [99.5, 100.5])
    stuck = replace(_session(99.0, []), ended=None, finished=False)
    found = _measure([dragging, stuck, _session(98.0, [99.9])])
    assert (found.num_sessions, found.attainment) == (2, 0.5)


def test_a_load_under_which_nobody_was_judged_is_not_served() -> None:
    """Though nobody was late."""
    assert not _measure([]).passes(0.95)


def test_sessions_that_were_refused_or_late_are_missed() -> None:
    """By what metrics.py calls attained."""
    found = _measure([_session(101.0, [101.5]), _session(101.0, [], failure="ServerBusy"), _session(101.0, [103.0])])
    assert found.attainment == pytest.approx(1 / 3)
    assert (found.num_unfinished, found.num_refused, found.failures) == (1, 1, {"ServerBusy": 1})
    assert not found.passes(0.95)


def test_goodput_counts_tokens_of_the_window_whenever_the_session_was_offered() -> None:
    """In time, of sessions whose first token was."""
    found = _measure([_session(99.5, [99.9, 100.0, 100.1]), _session(101.0, [104.0, 104.1])])
    assert (found.goodput, found.tokens_per_s) == (pytest.approx(0.2), pytest.approx(0.4))


def test_texts_that_are_not_the_recorded_ones_are_counted() -> None:
    """Replay has nothing to say about them."""
    assert _measure([_session(101.0, [101.1, 101.2]), _session(101.0, [101.1], wrong=True)]).num_diverged == 1


def test_the_server_is_measured_by_its_batches() -> None:
    """Those that started in the window: busy time, queue, cost, interference, CPU."""
    one, two = LoggedMember(5, 10, True, 101.0), LoggedMember(1, 10, True, 101.5)
    batches = [
        LoggedBatch(99.0, 1.0, 1.0, False, (one,)),
        LoggedBatch(102.0, 1.0, 2.0, False, (one, two)),
        LoggedBatch(104.0, 1.0, 4.0, False, (LoggedMember(8, 0, False, 103.0),), waited=0.25),
    ]
    found = _measure([_session(101.0, [101.5, 102.0])], batches)
    assert (found.utilisation, found.requests_per_batch, found.queue_s.p50) == (0.2, 1.0, 0.75)
    assert found.between_s == 0.75
    assert (found.positions_per_token, found.engine_time_per_token) == (7.0, 1.0)
    assert found.interference_s == pytest.approx((0.001 + 0.005) / 2)
    assert (found.server_cpu, found.driver_cpu) == (1.0, 0.5)


def test_a_batch_weighs_by_its_time_in_the_ratio_to_what_is_expected() -> None:
    """One of 11 ms that took twice as long, and one of 100 ms that took as long as it should."""
    short = LoggedBatch(102.0, 0.022, 1.0, False, (LoggedMember(1, 10, True, 101.0),))
    long = LoggedBatch(103.0, 0.100, 1.0, False, (LoggedMember(90, 10, True, 101.0),))
    assert _measure([], [short, long]).batch_time_ratio == pytest.approx(0.122 / 0.111)


def test_without_batch_times_interference_is_unknown() -> None:
    """And not 0."""
    found = measure([_session(101.0, [101.5])], [], WINDOW, DRIVER, None)
    assert (found.interference_s, found.batch_time_ratio) == (None, None)


def test_percentiles_of_nothing_are_zero() -> None:
    """A point without finished sessions is still a point."""
    assert Percentiles.of([]) == Percentiles(0.0, 0.0, 0.0)


def test_what_is_written_is_read() -> None:
    """Through JSON."""
    found = _measure([_session(101.0, [101.5])])
    assert Measures.of_json(json.loads(json.dumps(found.as_json()))) == found


def test_what_is_no_point_is_refused() -> None:
    """With what is missing."""
    content = replace(_measure([]), goodput=1.0).as_json()
    del content["goodput"]
    with pytest.raises(FormatError, match="goodput"):
        Measures.of_json(content)
