"""What the protocol promises about the rounds of one session."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.fakes import generate
from tests.server.desk import STEP_TIME, desk
from tests.server.device import PROMPT, decode, draft, generation
from tests.virtual_time import run
from wisp.errors import ProtocolError
from wisp.protocol import wisp_pb2 as pb
from wisp.server.stream import HIGH_WATER_FRAMES
from wisp.types import AcceptanceRule, SparseDistribution

N = len(PROMPT)
OUTPUT = generate(generation())


def summary(body: object) -> tuple[int, int, int | None, bool]:
    """(round, history before it, next token, final) of a verdict."""
    assert isinstance(body, pb.Verdict), body
    token = body.next_token if body.HasField("next_token") else None
    return body.round, body.num_committed, token, body.final


def test_a_draft_is_answered_by_one_final_verdict() -> None:
    """With what was accepted, the next token and the hints."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, draft(1, PROMPT, 2, 1))
            await asyncio.sleep(1.1 * STEP_TIME)
            (verdict,) = device.bodies()
            assert summary(verdict) == (1, N, OUTPUT[2], True)
            assert (verdict.session, verdict.epoch, verdict.num_verified, verdict.num_accepted) == (5, 1, 3, 2)
            assert verdict.verification_time == pytest.approx(STEP_TIME)

    run(main())


def test_a_round_that_is_asked_again_is_answered_byte_for_byte() -> None:
    """Drafts, plain rounds, null verdicts and errors; the engine computes nothing twice."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            history = [*PROMPT, *OUTPUT[:3]]
            rounds = [
                draft(1, PROMPT, 2),
                decode(2, N + 3, 2),
                decode(3, N + 1),
                decode(4, N + 99),
                draft(5, [*history, *OUTPUT[3:5]], 1, 1),
            ]
            for request in rounds:
                device.ask(5, request)
                await asyncio.sleep(5 * STEP_TIME)
                first, steps = device.take(), len(it.target.steps)
                assert first
                for _ in range(2):
                    device.ask(5, request)
                    await asyncio.sleep(5 * STEP_TIME)
                    assert device.take() == first
                assert len(it.target.steps) == steps

    run(main())


def test_older_rounds_are_ignored() -> None:
    """A late duplicate must not disturb what goes on now."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            first = decode(1, N)
            device.ask(5, first)
            await asyncio.sleep(1.1 * STEP_TIME)
            device.ask(5, decode(2, N + 1))
            await asyncio.sleep(1.1 * STEP_TIME)
            device.take()
            device.ask(5, first)
            device.ask(5, draft(1, PROMPT, 3))
            await asyncio.sleep(1.1 * STEP_TIME)
            assert device.take() == []

    run(main())


def test_asking_again_while_a_round_runs_changes_nothing() -> None:
    """It is answered once."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            for _ in range(3):
                device.ask(5, draft(1, PROMPT, 2))
            await asyncio.sleep(0.5 * STEP_TIME)
            device.ask(5, draft(1, PROMPT, 2))
            await asyncio.sleep(3 * STEP_TIME)
            assert len(device.take()) == 1

    run(main())


def test_plain_decoding_gives_one_verdict_for_each_token() -> None:
    """The last one is final; nothing is asked of the device in between."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, decode(1, N, 3))
            await asyncio.sleep(10 * STEP_TIME)
            assert [summary(body) for body in device.bodies()] == [
                (1, N, OUTPUT[0], False),
                (1, N + 1, OUTPUT[1], False),
                (1, N + 2, OUTPUT[2], True),
            ]

    run(main())


def test_a_finished_generation_ends_its_round_and_stays() -> None:
    """Whatever is asked afterwards gets the reason again."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5, generation(max_tokens=2))
            device.ask(5, decode(1, N, 10))
            await asyncio.sleep(10 * STEP_TIME)
            first, last = device.bodies()
            assert first.finish_reason == pb.FINISH_REASON_NONE
            assert (last.finish_reason, last.final) == (pb.FINISH_REASON_LENGTH, True)
            device.ask(5, draft(2, [*PROMPT, *OUTPUT[:2]], 1))
            (null,) = device.bodies()
            assert summary(null) == (2, N + 2, None, True)
            assert null.finish_reason == pb.FINISH_REASON_LENGTH
            assert len(it.registry) == 1

    run(main())


def test_a_device_that_is_ahead_is_told_so() -> None:
    """Its history is longer than the server's: the round is an error, the session goes on."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, decode(1, N + 7))
            (error,) = device.bodies()
            assert (error.session, error.epoch, error.code) == (5, 1, pb.ERROR_CODE_PROTOCOL)
            assert f"{N + 7}" in error.message
            assert f"{N}" in error.message
            device.ask(5, decode(2, N))
            await asyncio.sleep(1.1 * STEP_TIME)
            assert summary(device.bodies()[0]) == (2, N, OUTPUT[0], True)

    run(main())


def test_cancel_ends_a_plain_round_that_waits_with_a_null_verdict() -> None:
    """And one in the engine with the token that is on its way, then the null verdict."""

    async def main() -> None:
        async with desk(scheduler=None) as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, decode(1, N, 100))
            await asyncio.sleep(1.5 * STEP_TIME)
            device.cancel(5, 1)
            await asyncio.sleep(5 * STEP_TIME)
            assert [summary(body) for body in device.bodies()] == [
                (1, N, OUTPUT[0], False),
                (1, N + 1, OUTPUT[1], False),
                (1, N + 2, None, True),
            ]
            busy = it.device()
            await busy.opened(6)
            busy.ask(6, decode(1, N))
            await asyncio.sleep(0.5 * STEP_TIME)
            device.ask(5, decode(2, N + 2, 100))
            device.cancel(5, 2)
            assert [summary(body) for body in device.bodies()] == [(2, N + 2, None, True)]
            await asyncio.sleep(5 * STEP_TIME)
            assert device.take() == []

    run(main())


def test_cancel_of_a_draft_in_the_engine_gives_its_verdict() -> None:
    """What the engine commits is committed; a cancel for another round does nothing."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, draft(1, PROMPT, 2))
            await asyncio.sleep(0.5 * STEP_TIME)
            device.cancel(5, 1)
            device.cancel(5, 9)
            await asyncio.sleep(5 * STEP_TIME)
            assert [summary(body) for body in device.bodies()] == [(1, N, OUTPUT[2], True)]
            device.cancel(5, 1)
            assert device.take() == []

    run(main())


def test_a_draft_stops_plain_decoding_and_is_verified_where_it_fits() -> None:
    """The device drafted on all that the server has."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, decode(1, N, 100))
            await asyncio.sleep(1.5 * STEP_TIME)
            device.ask(5, draft(2, [*PROMPT, *OUTPUT[:2]], 2))
            await asyncio.sleep(5 * STEP_TIME)
            assert [summary(body) for body in device.bodies()] == [
                (1, N, OUTPUT[0], False),
                (1, N + 1, OUTPUT[1], False),
                (1, N + 2, None, True),
                (2, N + 2, OUTPUT[4], True),
            ]

    run(main())


def test_a_draft_that_the_server_has_overtaken_gets_a_null_verdict() -> None:
    """It names the history that the draft was made for; the overtaking tokens were sent before."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, decode(1, N, 100))
            await asyncio.sleep(1.5 * STEP_TIME)
            device.ask(5, draft(2, [*PROMPT, *OUTPUT[:1]], 2))
            await asyncio.sleep(5 * STEP_TIME)
            assert [summary(body) for body in device.bodies()] == [
                (1, N, OUTPUT[0], False),
                (1, N + 1, OUTPUT[1], False),
                (1, N + 2, None, True),
                (2, N + 1, None, True),
            ]
            device.ask(5, draft(3, [*PROMPT, *OUTPUT[:2]], 1))
            await asyncio.sleep(1.1 * STEP_TIME)
            assert summary(device.bodies()[0]) == (3, N + 2, OUTPUT[3], True)

    run(main())


def test_of_several_rounds_behind_a_busy_engine_the_newest_is_verified() -> None:
    """Each of the others ends with a null verdict of its own."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, decode(1, N))
            await asyncio.sleep(0.5 * STEP_TIME)
            device.ask(5, decode(2, N))
            device.ask(5, decode(3, N))
            device.ask(5, draft(4, [*PROMPT, OUTPUT[0]], 1))
            await asyncio.sleep(5 * STEP_TIME)
            assert [summary(body) for body in device.bodies()] == [
                (2, N, None, True),
                (3, N, None, True),
                (1, N, OUTPUT[0], True),
                (4, N + 1, OUTPUT[2], True),
            ]

    run(main())


def test_a_round_may_follow_its_open_at_once() -> None:
    """It runs as soon as the session is open; a cancel or a close in between is heeded."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            device.open(5)
            device.ask(5, decode(1, N))
            device.open(6)
            device.ask(6, decode(1, N))
            device.cancel(6, 1)
            device.open(7)
            device.ask(7, decode(1, N))
            device.close(7)
            await asyncio.sleep(3 * STEP_TIME)
            bodies = device.bodies()
            assert [(body.session, body.HasField("next_token")) for body in bodies if isinstance(body, pb.Verdict)] == [
                (6, False),
                (5, True),
            ]
            assert [body.session for body in bodies if isinstance(body, pb.Opened)] == [5, 6]

    run(main())


def test_rejection_sampling_takes_drafts_with_and_without_q() -> None:
    """A drafter that draws from nothing (n-gram) has no q: its tokens count as proposed for certain."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5, generation(temperature=1.0, rule=AcceptanceRule.REJECTION))
            plain = draft(1, PROMPT, 2)
            device.ask(5, plain)
            await asyncio.sleep(1.1 * STEP_TIME)
            (verdict,) = device.bodies()
            assert isinstance(verdict, pb.Verdict)
            assert verdict.num_verified == 2
            again = draft(2, (*PROMPT, *range(verdict.num_accepted + 1)), 2)
            with_q = [replace(one, distribution=SparseDistribution((one.token,), (9,))) for one in again.tokens]
            device.ask(5, replace(again, tokens=tuple(with_q)))
            await asyncio.sleep(1.1 * STEP_TIME)
            assert isinstance(device.bodies()[0], pb.Verdict)

    run(main())


def test_round_zero_breaks_the_protocol() -> None:
    """Rounds are counted from 1, so that 0 can mean none."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            with pytest.raises(ProtocolError, match="from 1"):
                device.ask(5, decode(0, N))

    run(main())


def test_a_history_that_fills_the_cache_ends_with_length() -> None:
    """The draft is cut to what fits; the last token that fits is the last one."""

    async def main() -> None:
        async with desk(max_history=N + 3) as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, draft(1, PROMPT, 2))
            await asyncio.sleep(1.1 * STEP_TIME)
            device.ask(5, draft(2, [*PROMPT, *OUTPUT[:3]], 2))
            await asyncio.sleep(1.1 * STEP_TIME)
            first, second = device.bodies()
            assert (first.num_verified, first.finish_reason) == (2, pb.FINISH_REASON_NONE)
            assert (second.num_verified, second.finish_reason) == (0, pb.FINISH_REASON_LENGTH)

    run(main())


def test_a_congested_stream_is_decoded_for_no_further_until_it_is_read() -> None:
    """What waits stays bounded, and nothing is lost."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5, generation(max_tokens=1000))
            device.ask(5, decode(1, N, 900))
            await asyncio.sleep(500 * STEP_TIME)
            assert device.stream.num_waiting == HIGH_WATER_FRAMES + 1
            assert device.stream.congested
            steps = len(it.target.steps)
            await asyncio.sleep(100 * STEP_TIME)
            assert len(it.target.steps) == steps
            tokens = [
                pb.ServerFrame.FromString(await device.stream.next_frame()).verdict.next_token
                for _ in range(HIGH_WATER_FRAMES + 1)
            ]
            assert not device.stream.congested
            await asyncio.sleep(200 * STEP_TIME)
            tokens += [body.next_token for body in device.bodies()]
            expected = generate(generation(max_tokens=1000))
            assert tokens == expected[: len(tokens)]
            assert len(tokens) > HIGH_WATER_FRAMES + 100

    run(main())


def test_a_paused_round_can_be_cancelled() -> None:
    """Nothing of it is left to resume."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5, generation(max_tokens=1000))
            device.ask(5, decode(1, N, 900))
            await asyncio.sleep(400 * STEP_TIME)
            device.cancel(5, 1)
            last = [await device.stream.next_frame() for _ in range(HIGH_WATER_FRAMES + 2)][-1]
            assert summary(pb.ServerFrame.FromString(last).verdict)[2:] == (None, True)
            await asyncio.sleep(5 * STEP_TIME)
            assert device.take() == []

    run(main())


def test_an_engine_failure_is_told_and_ends_the_session() -> None:
    """The device may open it again."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)

            def fail(_members: object) -> None:
                it.target.on_step = None
                raise RuntimeError("broken")

            it.target.on_step = fail
            device.ask(5, decode(1, N, 5))
            await asyncio.sleep(1.1 * STEP_TIME)
            (error,) = device.bodies()
            assert (error.session, error.code) == (5, pb.ERROR_CODE_INTERNAL)
            assert "broken" in error.message
            assert len(it.registry) == 0
            assert device.stream.sessions == set()
            await device.opened(5, epoch=2)

    run(main())


def test_the_deadline_moves_on_with_every_token_of_a_plain_round() -> None:
    """One token time of the session's SLO each; the way back is taken off."""
    seen: list[float] = []

    async def main() -> None:
        async with desk() as it:
            add = it.scheduler.add
            it.scheduler.add = lambda request: (seen.append(request.deadline), add(request))[1]  # type: ignore[method-assign]
            device = it.device()
            await device.opened(5, replace(generation(), slo="relaxed"))
            start = asyncio.get_running_loop().time()
            device.ask(5, replace(decode(1, N, 3), time_left=2.0, rtt=0.5))
            await asyncio.sleep(5 * STEP_TIME)
            assert [deadline - start for deadline in seen] == pytest.approx([1.5, 1.75, 2.0])

    run(main())


def test_a_round_that_waits_for_its_session_to_open_has_waited_in_the_queue() -> None:
    """Its deadline and its queue time count from its arrival: the device takes the rest for the network."""

    async def main() -> None:
        async with desk() as it:
            other, device = it.device(), it.device("another")
            await other.opened(1)
            other.ask(1, decode(1, N))
            await asyncio.sleep(0.25 * STEP_TIME)
            seen: list[float] = []
            add = it.scheduler.add
            it.scheduler.add = lambda request: (seen.append(request.deadline), add(request))[1]  # type: ignore[method-assign]
            arrival = asyncio.get_running_loop().time()
            device.open(5)
            device.ask(5, replace(decode(1, N), time_left=9.0))
            await asyncio.sleep(3 * STEP_TIME)
            (verdict,) = [body for body in device.bodies() if isinstance(body, pb.Verdict)]
            assert verdict.queue_time == pytest.approx(0.75 * STEP_TIME)
            assert seen == [pytest.approx(arrival + 9.0)]

    run(main())
