"""The service over real sockets: hello, sessions, errors, limits."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes import FakeTarget, generate
from tests.server.device import PROMPT, config, connected, decode, draft, generation
from wisp.protocol import wisp_pb2 as pb
from wisp.server.app import RunningServer, start_server


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    running = await start_server(FakeTarget(), config())
    yield running
    await running.stop(0.0)


async def test_a_generation_by_drafts_and_plain_decoding_gives_the_targets_output(server: RunningServer) -> None:
    """Prompt, first token plain, drafts of any quality, then plain tokens to the end."""
    request = generation(max_tokens=30)
    expected = generate(request)
    async with connected(server.address) as device:
        await device.open(7, request)
        assert (await device.opened()).session == 7
        history, number = list(PROMPT), 1
        await device.decode(7, decode(number, len(history)))
        history.append((await device.verdict()).next_token)
        while len(history) < len(PROMPT) + 20:
            number += 1
            sent = draft(number, history, number % 4, 1)
            await device.draft(7, sent)
            verdict = await device.verdict()
            assert (verdict.num_committed, verdict.num_accepted) == (len(history), number % 4)
            history += [drafted.token for drafted in sent.tokens[: verdict.num_accepted]] + [verdict.next_token]
        await device.decode(7, decode(number + 1, len(history), 100))
        while not verdict.final or verdict.round == number:
            verdict = await device.verdict()
            history.append(verdict.next_token)
        assert verdict.finish_reason == pb.FINISH_REASON_LENGTH
        assert history[len(PROMPT) :] == expected
