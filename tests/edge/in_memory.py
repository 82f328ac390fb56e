"""A server in memory: what the decoding loop sees of one, without a wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.fakes import FakeDrafter, FakeTarget
from wisp.drafting import Drafting, DraftWorker
from wisp.edge.decode import Committed, Generation, generate
from wisp.engines.base import StepMember
from wisp.errors import WispError
from wisp.policy.controller import FixedLength
from wisp.policy.session import Session, SessionSettings
from wisp.types import DecodeRequest, DraftRequest, GenerationRequest, SamplingParams, StopRules, Verdict

PROMPT = tuple(b"once upon a time")


@dataclass
class MemoryRemote:
    """A Remote on top of a target engine; `faults` are raised one by one, before the round of their number."""

    target: FakeTarget
    faults: dict[int, WispError] = field(default_factory=dict)
    open_faults: list[WispError] = field(default_factory=list)
    asked: list[DraftRequest | DecodeRequest] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    is_open: bool = False
    drafting: Drafting | None = None
    """Whose drafter has read the prompt by the time the first token comes."""

    def open(self, request: GenerationRequest, epoch: int) -> None:
        self.epochs.append(epoch)
        self.target.open("s", "owner", request)
        self.is_open = True

    async def opened(self) -> None:
        if self.open_faults:
            raise self.open_faults.pop(0)
        if self.drafting is not None and self.drafting._opening is not None:
            await asyncio.wait({self.drafting._opening})

    async def ask_all(self, request: DraftRequest | DecodeRequest) -> AsyncIterator[Verdict]:
        draft = request.tokens if isinstance(request, DraftRequest) else ()
        count = 1 if isinstance(request, DraftRequest) else request.num_tokens
        for number in range(count):
            if fault := self.faults.pop(len(self.asked), None):
                raise fault
            missing = len(self.target.history("s")) - 1 - self.target.num_cached_tokens("s")
            (outcome,) = self.target.step([StepMember("s", missing, draft)])
            final = number == count - 1 or outcome.finish_reason is not None
            yield Verdict(
                request.round,
                outcome.num_verified,
                outcome.num_accepted,
                outcome.next_token,
                outcome.logprobs,
                outcome.finish_reason,
                final,
            )
            if final:
                return

    def ask(self, request: DraftRequest | DecodeRequest) -> AsyncIterator[Verdict]:
        assert request.num_committed == len(self.target.history("s"))
        self.asked.append(request)
        return self.ask_all(request)

    async def connected(self, within: float | None = None) -> None:
        pass

    def close(self) -> None:
        self.is_open = False


def generation_request(max_tokens: int = 40, **sampling: float) -> GenerationRequest:
    return GenerationRequest(PROMPT, len(PROMPT), SamplingParams(**sampling), StopRules(max_tokens))


async def no_sleep(seconds: float) -> None:
    """Sleep no time at all."""


def generation(
    remote: MemoryRemote, worker: DraftWorker | None, request: GenerationRequest, num_draft_tokens: int = 4
) -> Generation:
    session = Session(request, FixedLength(num_draft_tokens), SessionSettings(), None, 0.0)
    drafting = Drafting(worker, "s", clock=lambda: 0.0)
    remote.drafting = drafting
    return Generation(session, remote, drafting, clock=lambda: 0.0, sleep=no_sleep)


async def output_of(given: Generation) -> list[int]:
    committed: list[Committed] = [step async for step in generate(given)]
    assert committed[-1].finish_reason is not None
    return [token for step in committed for token in step.tokens]


def perfect_worker(accuracy: float = 1.0) -> DraftWorker:
    return DraftWorker(FakeDrafter(accuracy))
