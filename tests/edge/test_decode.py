"""The decoding loop against a server in memory: the output is the target's, whatever drafter and connection do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from tests import fakes
from tests.edge.in_memory import PROMPT, MemoryRemote, generation, generation_request, output_of
from tests.fakes import FakeDrafter, FakeTarget
from wisp.drafting import DraftWorker
from wisp.errors import ConnectionLost, EngineError, InvalidRequest, ServerBusy, SessionLost
from wisp.policy.session import SessionSettings
from wisp.types import DecodeRequest, DraftedToken, DraftRequest, GenerationRequest, Verdict


@pytest.fixture
def worker() -> Iterator[DraftWorker]:
    given = DraftWorker(FakeDrafter(accuracy=0.7))
    yield given
    given.shutdown()


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
async def test_drafting_never_changes_the_output(accuracy: float) -> None:
    """Good, middling and useless drafters give the very tokens of plain decoding."""
    request = generation_request()
    worker = DraftWorker(FakeDrafter(accuracy))
    remote = MemoryRemote(FakeTarget())
    assert await output_of(generation(remote, worker, request)) == fakes.generate(request)
    assert any(isinstance(asked, DraftRequest) for asked in remote.asked)
    worker.shutdown()


async def test_plain_decoding_without_a_drafter() -> None:
    """Without a drafter the rest of the answer is asked for at once, after the first token."""
    request, remote = generation_request(), MemoryRemote(FakeTarget())
    given = generation(remote, None, request)
    assert await output_of(given) == fakes.generate(request)
    assert [asked.num_tokens for asked in remote.asked if isinstance(asked, DecodeRequest)] == [1, 39]
    assert (given.num_accepted, given.num_rejected) == (0, 0)


async def test_a_good_drafter_saves_rounds(worker: DraftWorker) -> None:
    """Accepted tokens come without a round of their own."""
    remote = MemoryRemote(FakeTarget())
    given = generation(remote, worker, generation_request())
    await output_of(given)
    assert given.num_accepted > 0
    assert len(remote.asked) < 40
    drafted = sum(len(asked.tokens) for asked in remote.asked if isinstance(asked, DraftRequest))
    assert given.num_accepted + given.num_rejected == drafted


class Broken(FakeDrafter):
    """Fails in the method, and at the call, that it is told."""

    method = ""
    calls_left = 0

    def _count(self, method: str) -> None:
        if method == self.method:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise RuntimeError("out of memory")

    def open(self, session_id: str, request: GenerationRequest) -> None:
        self._count("open")
        super().open(session_id, request)

    def draft(self, session_ids: list[str]) -> list[DraftedToken | None]:
        self._count("draft")
        return super().draft(session_ids)

    def commit(self, session_id: str, num_accepted: int, tokens: list[int]) -> None:
        self._count("commit")
        super().commit(session_id, num_accepted, tokens)

    def close(self, session_id: str) -> None:
        self._count("close")
        super().close(session_id)


@pytest.mark.parametrize("method", ["open", "draft", "commit", "close"])
@pytest.mark.parametrize("calls_left", [0, 2, 5])
async def test_a_drafter_that_fails_costs_speed_not_text(
    method: str, calls_left: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The generation goes on in plain decoding, and the log says so."""
    drafter = Broken()
    drafter.method, drafter.calls_left = method, calls_left
    worker, request = DraftWorker(drafter), generation_request()
    assert await output_of(generation(MemoryRemote(FakeTarget()), worker, request)) == fakes.generate(request)
    if drafter.calls_left < 0 and method != "close":
        assert "goes on without drafts" in caplog.text
    worker.shutdown()


async def test_a_history_beyond_the_drafters_context_is_decoded_plainly() -> None:
    """A drafter with a short context helps as far as it reaches."""
    drafter = FakeDrafter(accuracy=1.0, context_length=len(PROMPT) + 12)
    worker, request, remote = DraftWorker(drafter), generation_request(), MemoryRemote(FakeTarget())
    assert await output_of(generation(remote, worker, request)) == fakes.generate(request)
    kinds = [isinstance(asked, DraftRequest) for asked in remote.asked]
    assert True in kinds
    assert not kinds[-1]
    worker.shutdown()


async def test_a_drafter_with_nothing_to_propose_is_asked_again_soon() -> None:
    """Plain rounds stay short while a draft may soon be possible."""

    class Silent(FakeDrafter):
        def draft(self, session_ids: list[str]) -> list[DraftedToken | None]:
            return [None for _ in session_ids]

    worker, request, remote = DraftWorker(Silent()), generation_request(), MemoryRemote(FakeTarget())
    assert await output_of(generation(remote, worker, request)) == fakes.generate(request)
    assert {asked.num_tokens for asked in remote.asked if isinstance(asked, DecodeRequest)} <= {
        1,
        3,
        SessionSettings().short_decode_tokens,
    }
    worker.shutdown()


@pytest.mark.parametrize("round_number", range(1, 12))
@pytest.mark.parametrize("fault", [ConnectionLost("cut"), SessionLost("evicted"), EngineError("out of memory")])
async def test_a_lost_round_is_taken_up_again(worker: DraftWorker, round_number: int, fault: Exception) -> None:
    """Whenever the connection or the session is lost, the text is complete and nothing is repeated."""
    request = generation_request()
    remote = MemoryRemote(FakeTarget(), faults={round_number: fault})
    assert await output_of(generation(remote, worker, request)) == fakes.generate(request)
    assert remote.epochs == [0, 1]


async def test_a_busy_server_is_waited_for_when_taking_up_again(worker: DraftWorker) -> None:
    """A generation that has begun does not end because its server is full."""
    request = generation_request()
    remote = MemoryRemote(FakeTarget(), faults={3: ConnectionLost("cut")})
    given = generation(remote, worker, request)
    await given.open()
    remote.open_faults = [ServerBusy("full", 1.0), ConnectionLost("cut again"), ServerBusy("full", 1.0)]
    tokens = [token async for step in given.stream() for token in step.tokens]
    assert tokens == fakes.generate(request)
    assert remote.epochs == [0, 1, 2, 3, 4]


async def test_an_engine_that_fails_to_open_is_tried_again_but_not_for_ever(worker: DraftWorker) -> None:
    """Taking up again counts among the failures in a row, and three of those are survived."""
    request = generation_request()
    for num_failures in (2, 3):
        remote = MemoryRemote(FakeTarget(), faults={3: EngineError("out of memory")})
        given = generation(remote, worker, request)
        await given.open()
        remote.open_faults = [EngineError("still")] * num_failures
        if num_failures == 2:
            assert [token for step in [step async for step in given.stream()] for token in step.tokens] == (
                fakes.generate(request)
            )
        else:
            with pytest.raises(EngineError, match="still"):
                _ = [step async for step in given.stream()]


@pytest.mark.parametrize("fault", [ServerBusy("full", 2.0), InvalidRequest("no", "prompt")])
async def test_a_refusal_at_the_start_is_the_callers(worker: DraftWorker, fault: Exception) -> None:
    """Who asks for a generation hears that it is refused, and nothing stays open."""
    remote = MemoryRemote(FakeTarget(), open_faults=[fault])
    with pytest.raises(type(fault)):
        await generation(remote, worker, generation_request()).open()
    assert not remote.is_open


async def test_a_connection_lost_at_the_start_is_tried_again_a_few_times(worker: DraftWorker) -> None:
    """One loss is survived, a server that loses every attempt is reported."""
    request = generation_request()
    remote = MemoryRemote(FakeTarget(), open_faults=[ConnectionLost("cut")])
    assert await output_of(generation(remote, worker, request)) == fakes.generate(request)
    with pytest.raises(ConnectionLost):
        await output_of(generation(MemoryRemote(FakeTarget(), {}, [ConnectionLost("cut")] * 3), worker, request))


async def test_leaving_early_closes_the_session(worker: DraftWorker) -> None:
    """A consumer that goes away ends the generation on both sides."""
    remote = MemoryRemote(FakeTarget())
    async with aclosing(generation(remote, worker, generation_request()).stream()) as stream:
        pass
    given = generation(remote, worker, generation_request())
    await given.open()
    async with aclosing(given.stream()) as stream:
        await anext(stream)
        assert remote.is_open
    assert not remote.is_open


async def test_eos_ends_the_generation() -> None:
    """A drafted or decoded EOS is the last token."""
    target, worker = FakeTarget(eos_one_in=20), DraftWorker(FakeDrafter(1.0, eos_one_in=20))
    request = generation_request(400)
    request = GenerationRequest(
        request.tokens, len(PROMPT), request.sampling, type(request.stop)(400, frozenset({fakes.EOS}))
    )
    assert await output_of(generation(MemoryRemote(target), worker, request)) == fakes.generate(request, eos_one_in=20)
    worker.shutdown()


@pytest.mark.parametrize("seed", [1, 2])
async def test_sampled_output_is_the_targets_too(worker: DraftWorker, seed: int) -> None:
    """With shared noise a sampled output repeats exactly."""
    request = generation_request(temperature=1.0, seed=seed)
    assert await output_of(generation(MemoryRemote(FakeTarget()), worker, request)) == fakes.generate(request)


async def test_a_null_verdict_takes_back_the_draft(worker: DraftWorker, caplog: pytest.LogCaptureFixture) -> None:
    """A round that the server ends without a token leaves no trace in the drafter."""

    class Interrupting(MemoryRemote):
        async def ask_all(self, request: DraftRequest | DecodeRequest) -> AsyncIterator[Verdict]:
            if isinstance(request, DraftRequest) and len(self.asked) % 3 == 0:
                yield Verdict(request.round, 0, 0, None)
                return
            async for verdict in super().ask_all(request):
                yield verdict

    request, remote = generation_request(), Interrupting(FakeTarget())
    given = generation(remote, worker, request)
    assert await output_of(given) == fakes.generate(request)
    assert any(record.num_drafted and not record.num_verified for record in given.session.records)
    assert "without drafts" not in caplog.text
