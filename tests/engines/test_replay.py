"""The drafter that replays a trace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.training.traces import header
from wisp.engines.base import DraftEngine
from wisp.engines.replay import ReplayDrafter
from wisp.engines.timed import RecordedOutputs
from wisp.errors import ConfigError, EngineError, FormatError
from wisp.formats.trace import Chain, TraceRecord
from wisp.types import DraftStats, GenerationRequest, SamplingParams, StopRules

STATS = DraftStats(0.5, 1.0, 2.0, 3.0, 0.5)
PROMPT, OUTPUT = (1, 2, 3), (10, 11, 12)
CHAINS = ((10, 11), (11, 99), (12, 13))


def _record(output: tuple[int, ...] = OUTPUT) -> TraceRecord:
    chains = tuple(Chain(tokens, (STATS,) * 2, 0, 0) for tokens in CHAINS)
    return TraceRecord(0, "one", PROMPT + output, len(PROMPT), chains, 0.01, 0.01)


def _request(*output: int) -> GenerationRequest:
    return GenerationRequest((*PROMPT, *output), len(PROMPT), SamplingParams(), StopRules(8))


def _drafter(*output: int) -> DraftEngine:
    drafter = ReplayDrafter(header(), [_record()])
    drafter.open("s", _request(*output))
    return drafter


def _draft(drafter: DraftEngine, num_tokens: int) -> list[int | None]:
    drafted = [drafter.draft(["s"])[0] for _ in range(num_tokens)]
    return [None if one is None else one.token for one in drafted]


def test_the_chain_of_the_position_is_proposed_until_it_ends() -> None:
    """Then there is nothing to propose."""
    assert _draft(_drafter(), 3) == [10, 11, None]
    assert _draft(_drafter(10), 3) == [11, 99, None]


def test_the_next_chain_starts_after_what_was_committed() -> None:
    """Accepted tokens and the target's own."""
    drafter = _drafter()
    _draft(drafter, 2)
    drafter.commit("s", 1, (11,))
    assert _draft(drafter, 1) == [12]


def test_plain_decoding_moves_on_as_well() -> None:
    """Without a draft."""
    drafter = _drafter()
    drafter.commit("s", 0, (10, 11))
    assert _draft(drafter, 1) == [12]


def test_nothing_is_proposed_past_the_output() -> None:
    """The recording has ended."""
    drafter = _drafter()
    drafter.commit("s", 0, OUTPUT)
    assert _draft(drafter, 1) == [None]


def test_statistics_are_the_recorded_ones() -> None:
    """Stop rules see what the drafter saw."""
    (drafted,) = _drafter().draft(["s"])
    assert drafted is not None
    assert drafted.stats == STATS


def test_another_text_than_the_recorded_one_is_an_error() -> None:
    """That says what a replay needs."""
    drafter = _drafter()
    with pytest.raises(EngineError, match="output token 0 of one is 77, but 10 was recorded"):
        drafter.commit("s", 0, (77,))


def test_an_unknown_prompt_is_an_error() -> None:
    """Not a silent absence of drafts."""
    with pytest.raises(EngineError, match="no prompt like this one of 2 tokens"):
        _drafter().open("other", GenerationRequest((1, 2), 2, SamplingParams(), StopRules(8)))


def test_traces_of_rejection_sampling_are_refused() -> None:
    """They lack q."""
    with pytest.raises(ConfigError, match="rejection"):
        ReplayDrafter(replace(header(), rule="rejection"), [_record()])


def test_a_prompt_with_two_outputs_is_refused() -> None:
    """By drafter and target: nobody could tell which one a session follows."""
    records = [_record(), _record((10, 11, 13))]
    with pytest.raises(FormatError, match="same prompt with different outputs"):
        ReplayDrafter(header(), records)
    with pytest.raises(FormatError, match="same prompt with different outputs"):
        RecordedOutputs.of(records)
