"""Emulated devices in one process: the edge's own client, session and drafting code, with replayed drafts.

Drafting, reading and the network take time by asynchronous sleeping, so that one process can drive many devices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tokenizers import Tokenizer

from wisp.bench.live.fleet import Ask, DeviceScript, DeviceTraits
from wisp.config import EdgeConfig
from wisp.drafting import DraftWorker
from wisp.edge.app import check_vocabulary
from wisp.edge.client import ServerConnection
from wisp.edge.decode import Generation, generate
from wisp.edge.device import Device
from wisp.edge.settings import GenerationSettings
from wisp.edge.stop_rules import check_predictor
from wisp.engines.base import DraftEngine
from wisp.errors import ServerBusy, WispError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.trace import TraceHeader
from wisp.policy.session import Session
from wisp.types import GenerationRequest, SamplingParams, SessionId, TokenId


class InlineExecutor(Executor):
    """Runs calls at once where they are submitted: for engines that only look things up."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The result, or what was raised, is there already."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever waits for the future hears of it
            future.set_exception(error)
        return future


class EmulatedWorker(DraftWorker):
    """A drafter that takes its time, for drafting and for reading what it has not read in the session before."""

    def __init__(self, engine: DraftEngine, traits: DeviceTraits, executor: Executor) -> None:
        super().__init__(engine, emulated_draft_time=traits.draft_time, executor=executor)
        self._read_time = traits.read_time
        self._read: Sequence[TokenId] = ()

    async def open(self, session_id: SessionId, request: GenerationRequest) -> None:
        await super().open(session_id, request)
        pairs = zip(self._read, request.tokens, strict=False)
        num_known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._read = request.tokens
        await self._sleep(self._read_time * (len(request.tokens) - num_known))

    async def commit(self, session_id: SessionId, num_accepted: int, tokens: Sequence[TokenId]) -> None:
        await super().commit(session_id, num_accepted, tokens)
        await self._sleep(self._read_time * max(len(tokens) - 1, 0))


@dataclass(slots=True)
class OfferedSession:
    """One session that a device asked for, and what became of it; times by the event loop's clock."""

    ask: Ask
    offered: float
    session: Session
    ended: float | None = None
    """None: it has not, or was cut off."""
    finished: bool = False
    failure: str | None = None
    """Name of the error that ended it."""

    @property
    def diverged(self) -> bool:
        """Whether its text is not the recorded one: the drafter has nothing to say from there on."""
        record = self.ask.record
        return tuple(self.session.tokens) != record.tokens[: len(self.session.tokens)]


@dataclass(slots=True)
class DriverModels:
    """What the devices of one process share."""

    header: TraceHeader
    engine: DraftEngine
    executor: Executor
    tokenizer: Tokenizer
    trained: TrainedPredictor | None = None


@dataclass(slots=True)
class EmulatedDevice:
    """One device: connected, then asking for session after session."""

    script: DeviceScript
    config: EdgeConfig
    models: DriverModels
    offered: list[OfferedSession] = field(default_factory=list, init=False)
    _connection: ServerConnection = field(init=False)
    _device: Device = field(init=False)

    def __post_init__(self) -> None:
        self._connection = ServerConnection(self.config)

    async def connect(self) -> None:
        """Raises ConnectionLost, AuthenticationFailed, VocabularyMismatch, FormatError."""
        self._connection.vocabulary = self.models.engine.vocabulary or ""
        await self._connection.start()
        worker = None
        if self.config.max_draft_tokens > 0:
            engine, target = self.models.engine, self._connection.target
            check_vocabulary(engine, target)
            if self.models.trained is not None:
                check_predictor(self.models.trained, engine, target)
            worker = EmulatedWorker(engine, self.script.traits, self.models.executor)
        clock = asyncio.get_running_loop().time
        trained = self.models.trained
        self._device = Device(self.config, self._connection, self.models.tokenizer, worker, trained, clock)

    async def close(self) -> None:
        """End the connection."""
        await self._connection.close()

    async def run(self, delay: float) -> None:
        """Ask for sessions, the first after `delay` seconds, until cancelled."""
        await asyncio.sleep(delay)
        for ask in self.script.asks():
            pause = await self._run_session(ask)
            await asyncio.sleep(max(ask.pause, pause))

    async def _run_session(self, ask: Ask) -> float:
        """One session; returns the seconds that the server asked to wait."""
        generation = self._generation(ask)
        offered = OfferedSession(ask, generation.session.started, generation.session)
        self.offered.append(offered)
        pause = 0.0
        try:
            async for _ in generate(generation):
                pass
            offered.finished = True
        except WispError as error:
            offered.failure = type(error).__name__
            pause = error.retry_after if isinstance(error, ServerBusy) else 0.0
        offered.ended = self._device.clock()
        return pause

    def _generation(self, ask: Ask) -> Generation:
        header, record = self.models.header, ask.record
        sampling = SamplingParams(header.temperature, top_p=header.top_p, seed=header.seed + record.prompt)
        settings = GenerationSettings(
            sampling=sampling,
            max_tokens=ask.max_tokens,
            stop_token_ids=self._device.target.eos_token_ids,
            stop_strings=(),
            slo=ask.slo,
        )
        return self._device.generation(record.tokens[: record.num_prompt_tokens], settings, 0)
