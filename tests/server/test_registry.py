"""Which sessions the server holds: admission, epochs, owners, orphans."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.fakes import EOS, generate
from tests.server.desk import STEP_TIME, desk
from tests.server.device import PROMPT, decode, draft, generation
from tests.virtual_time import run
from wisp.errors import ConnectionLost, InvalidRequest, ProtocolError, ServerBusy, SessionFenced, SessionLost
from wisp.policy.scheduler import SchedulerLimits
from wisp.protocol import wisp_pb2 as pb
from wisp.types import AcceptanceRule, StopRules

N = len(PROMPT)
OUTPUT = generate(generation())


def test_a_higher_epoch_takes_a_session_over_and_fences_the_older_stream() -> None:
    """The history is the device's; what is cached of it is found again."""

    async def main() -> None:
        async with desk() as it:
            old, new = it.device(), it.device()
            await old.opened(5)
            old.ask(5, draft(1, PROMPT, 3))
            await asyncio.sleep(1.1 * STEP_TIME)
            old.take()
            opened = await new.opened(5, generation(output=OUTPUT[:2]), epoch=2)
            assert opened.num_cached_tokens == N + 1
            (error,) = old.bodies()
            assert (error.session, error.epoch, error.code) == (5, 1, pb.ERROR_CODE_SESSION_FENCED)
            assert old.stream.sessions == set()
            with pytest.raises(SessionFenced):
                old.ask(5, decode(2, N + 4))
            new.ask(5, decode(1, N + 2), epoch=2)
            await asyncio.sleep(1.1 * STEP_TIME)
            (verdict,) = new.bodies()
            assert (verdict.epoch, verdict.next_token) == (2, OUTPUT[2])
            assert len(it.registry) == 1

    run(main())


def test_a_session_is_taken_over_in_the_middle_of_a_step() -> None:
    """The older epoch's verdict reaches nobody, and the new history is the one given."""

    async def main() -> None:
        async with desk() as it:
            old, new = it.device(), it.device()
            await old.opened(5)
            old.ask(5, decode(1, N, 50))
            await asyncio.sleep(2.5 * STEP_TIME)
            old.take()
            new.open(5, generation(output=OUTPUT[:1]), epoch=2)
            new.ask(5, decode(1, N + 1, 2), epoch=2)
            await asyncio.sleep(5 * STEP_TIME)
            assert [body.code for body in old.bodies()] == [pb.ERROR_CODE_SESSION_FENCED]
            opened, *verdicts = new.bodies()
            assert opened.epoch == 2
            assert [(one.num_committed, one.next_token) for one in verdicts] == [(N + 1, OUTPUT[1]), (N + 2, OUTPUT[2])]

    run(main())


def test_the_same_or_a_lower_epoch_takes_nothing_over() -> None:
    """Neither from another stream nor, when lower, from its own."""

    async def main() -> None:
        async with desk() as it:
            holder, other = it.device(), it.device()
            await holder.opened(5, epoch=3)
            for device, epoch in ((other, 3), (other, 2), (holder, 2)):
                with pytest.raises(SessionFenced, match="only a higher one"):
                    device.open(5, epoch=epoch)
            for device, epoch in ((other, 3), (other, 2), (holder, 2)):
                with pytest.raises(SessionFenced):
                    device.ask(5, decode(1, N), epoch=epoch)
            holder.ask(5, decode(1, N), epoch=3)
            await asyncio.sleep(1.1 * STEP_TIME)
            assert len(holder.take()) == 1

    run(main())


def test_the_same_open_again_on_its_stream_is_answered_again() -> None:
    """Byte for byte; while it is being opened once is enough."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            device.open(5)
            device.open(5)
            await asyncio.sleep(0.01)
            (first,) = device.take()
            device.ask(5, decode(1, N))
            await asyncio.sleep(1.1 * STEP_TIME)
            device.take()
            device.open(5)
            assert device.take() == [first]

    run(main())


def test_a_device_may_take_its_session_up_again_on_the_same_stream() -> None:
    """With a higher epoch; it is not told that it fenced itself."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            opened = await device.opened(5, epoch=2)
            assert opened.epoch == 2
            assert device.stream.sessions == {5}
            with pytest.raises(SessionFenced):
                device.ask(5, decode(1, N), epoch=1)
            with pytest.raises(SessionLost, match="open epoch 3 first"):
                device.ask(5, decode(1, N), epoch=3)

    run(main())


def test_unknown_sessions_are_lost() -> None:
    """Never opened, closed, or those of another owner."""

    async def main() -> None:
        async with desk() as it:
            device, stranger = it.device(), it.device("stranger")
            await device.opened(5)
            for one, session in ((device, 6), (stranger, 5)):
                with pytest.raises(SessionLost):
                    one.ask(session, decode(1, N))
            device.close(5)
            with pytest.raises(SessionLost):
                device.ask(5, decode(1, N))
            await asyncio.sleep(0.01)
            assert it.target.open_sessions == set()

    run(main())


def test_owners_have_sessions_of_the_same_id_without_meeting() -> None:
    """Neither fenced, nor closed, nor served from the other's cache."""

    async def main() -> None:
        async with desk() as it:
            mine, yours = it.device("me"), it.device("you")
            await mine.opened(5)
            mine.ask(5, decode(1, N, 2))
            await asyncio.sleep(3 * STEP_TIME)
            opened = await yours.opened(5, generation(output=OUTPUT[:2]), epoch=9)
            assert opened.num_cached_tokens == 0
            yours.close(5, epoch=1)
            yours.close(5, epoch=9)
            assert [body.WhichOneof("body") for body in mine.frames()] == ["verdict"] * 2
            mine.ask(5, decode(2, N + 2))
            await asyncio.sleep(1.1 * STEP_TIME)
            assert mine.bodies()[0].next_token == OUTPUT[2]

    run(main())


def test_only_its_own_epoch_and_stream_close_a_session() -> None:
    """A late close of an older epoch must not end the newer one."""

    async def main() -> None:
        async with desk() as it:
            old, new = it.device(), it.device()
            await old.opened(5)
            await new.opened(5, epoch=2)
            old.close(5, epoch=1)
            old.close(5, epoch=2)
            new.close(5, epoch=1)
            assert len(it.registry) == 1
            new.close(5, epoch=2)
            assert len(it.registry) == 0

    run(main())


def test_a_broken_streams_sessions_wait_for_their_device() -> None:
    """Plain decoding stops; a frame without a new open is refused; after the idle timeout they are forgotten."""

    async def main() -> None:
        async with desk(idle_timeout=50.0) as it:
            device, back = it.device(), it.device()
            await device.opened(5)
            await device.opened(6)
            device.ask(5, decode(1, N, 100))
            await asyncio.sleep(2.5 * STEP_TIME)
            it.registry.orphan(device.stream)
            await asyncio.sleep(5 * STEP_TIME)
            assert len(it.target.steps) == 3
            with pytest.raises(SessionLost, match="broke"):
                back.ask(5, decode(2, N + 3))
            with pytest.raises(SessionFenced):
                back.open(5, epoch=1)
            opened = await back.opened(5, generation(output=OUTPUT[:3]), epoch=2)
            assert opened.num_cached_tokens == N + 2
            await asyncio.sleep(30.0)
            it.registry.forget_idle()
            assert len(it.registry) == 2
            await asyncio.sleep(30.0)
            it.registry.forget_idle()
            assert len(it.registry) == 1
            await asyncio.sleep(0.01)
            assert it.target.open_sessions == {f"me/{5:016x}"}

    run(main())


def test_a_stream_that_breaks_with_a_round_in_every_state_leaves_nothing_running() -> None:
    """Opening, pending, queued, in the engine."""

    async def main() -> None:
        async with desk(SchedulerLimits(max_batch_requests=1)) as it:
            device = it.device()
            await device.opened(1)
            await device.opened(2)
            device.ask(1, decode(1, N, 9))
            device.ask(2, decode(1, N, 9))
            await asyncio.sleep(0.01)
            device.ask(1, decode(2, N, 9))
            device.open(3)
            device.ask(3, decode(1, N, 9))
            it.registry.orphan(device.stream)
            await asyncio.sleep(20 * STEP_TIME)
            assert len(it.target.steps) == 1
            assert not it.registry.busy
            assert device.take() == []

    run(main())


def test_a_full_table_gives_up_orphans_first() -> None:
    """The one whose stream broke first; when there is none, the device is told to come back."""

    async def main() -> None:
        async with desk(SchedulerLimits(max_sessions=3), max_sessions=3) as it:
            gone, here = it.device(), it.device()
            await here.opened(1)
            await gone.opened(2)
            it.registry.orphan(gone.stream)
            await asyncio.sleep(1)
            await gone.opened(3)
            it.registry.orphan(gone.stream)
            await here.opened(4)
            with pytest.raises(SessionLost, match="does not know"):
                here.ask(2, decode(1, N))
            await here.opened(5)
            with pytest.raises(ServerBusy, match="busy") as refusal:
                here.open(6)
            assert refusal.value.retry_after > 0
            here.close(1)
            await here.opened(6)

    run(main())


def test_a_stream_holds_only_so_many_sessions() -> None:
    """Taking one up again does not count twice."""

    async def main() -> None:
        async with desk(max_sessions_per_stream=2) as it:
            device = it.device()
            await device.opened(1)
            await device.opened(2)
            with pytest.raises(ServerBusy, match="holds 2 sessions"):
                device.open(3)
            await device.opened(2, epoch=2)
            device.close(1)
            await device.opened(3)

    run(main())


def test_a_request_that_cannot_be_served_names_its_field() -> None:
    """And leaves no session behind."""
    rejection = generation(temperature=1.0, rule=AcceptanceRule.REJECTION)
    cases = [
        (replace(generation(), slo="express"), "slo", "express.*fast, normal, relaxed"),
        (generation(b"x" * 300), "prompt", "300 tokens"),
        (generation(max_tokens=3, output=OUTPUT[:3]), "max_tokens", "3 output tokens"),
        (rejection, "rule", "rejection is not offered"),
    ]

    async def main() -> None:
        async with desk(max_history=200) as it:
            it.registry._card = replace(it.target.card, acceptance_rules=(AcceptanceRule.COUPLED,))
            device = it.device()
            for request, field, complaint in cases:
                with pytest.raises(InvalidRequest, match=complaint) as refusal:
                    device.open(5, request)
                assert refusal.value.field == field
            with pytest.raises(ProtocolError, match="beyond the vocabulary"):
                device.open(5, generation((EOS + 1,)))
            assert len(it.registry) == 0
            assert device.stream.sessions == set()
            await device.opened(5, replace(rejection, sampling=replace(rejection.sampling, temperature=0.0)))

    run(main())


def test_what_the_engine_refuses_is_told_and_forgotten() -> None:
    """Its InvalidRequest becomes an error frame with the field."""

    async def main() -> None:
        async with desk(max_history=9000) as it:
            device = it.device()
            device.open(5, replace(generation(b"x" * 4096), stop=StopRules(9000)))
            device.ask(5, decode(1, 4096))
            await asyncio.sleep(0.01)
            (error,) = device.bodies()
            assert (error.code, error.field) == (pb.ERROR_CODE_INVALID, "prompt")
            assert len(it.registry) == 0
            await device.opened(5)

    run(main())


def test_a_draining_server_opens_nothing_new() -> None:
    """It is busy as long as a connected device waits for something."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            device.open(5)
            assert it.registry.busy
            await asyncio.sleep(0.01)
            assert not it.registry.busy
            device.ask(5, decode(1, N, 2))
            it.registry.draining = True
            with pytest.raises(ConnectionLost, match="shutting down"):
                device.open(6)
            await asyncio.sleep(1.5 * STEP_TIME)
            assert it.registry.busy
            await asyncio.sleep(1.5 * STEP_TIME)
            assert not it.registry.busy

    run(main())


def test_opens_do_not_pile_up_behind_a_busy_engine() -> None:
    """A device that opens the same session over and over is told to wait."""

    async def main() -> None:
        async with desk() as it:
            device = it.device()
            await device.opened(5)
            device.ask(5, decode(1, N))
            await asyncio.sleep(0.5 * STEP_TIME)
            for epoch in range(2, 35):
                device.open(6, epoch=epoch)
            with pytest.raises(ServerBusy, match="wait to be opened"):
                device.open(6, epoch=35)
            await asyncio.sleep(STEP_TIME)
            assert [body.epoch for body in device.bodies() if isinstance(body, pb.Opened)] == [34]

    run(main())
