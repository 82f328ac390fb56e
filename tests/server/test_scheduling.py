"""Which scheduler a server runs, and what it is worth where devices compete."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeTarget, fake_card
from tests.formats.test_calibration import CALIBRATION
from tests.server.device import config
from tests.virtual_time import VirtualEngineTime, run
from wisp.calibration import app as calibration
from wisp.config import ModelConfig, SecurityConfig
from wisp.engines.base import StepOutcome
from wisp.engines.timed import RecordedOutputs, TimedTarget
from wisp.errors import ConfigError, EngineError, FormatError
from wisp.formats.calibration import Calibration
from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.scheduler import FCFSScheduler, Scheduler, SchedulerLimits
from wisp.policy.slo_aware import SLOAwareScheduler
from wisp.server.loop import Round, VerificationLoop
from wisp.server.scheduling import build_scheduler
from wisp.types import SLO, DraftedToken, GenerationRequest, Hints, SamplingParams, SessionDemand, StopRules

CARD = replace(fake_card("m"), dtype="float32", device="cpu")


def test_first_come_first_served_is_the_default() -> None:
    """And needs to know nothing."""
    assert isinstance(build_scheduler(FakeTarget(), config()), FCFSScheduler)


def test_batch_times_come_from_a_profile(tmp_path: Path) -> None:
    """If it is of this model, number format and device."""
    path = tmp_path / "profile.json"
    CALIBRATION.save(path)
    with_profile = config(system="wisp-plus", profile=path)
    scheduler = build_scheduler(FakeTarget(card=CARD), with_profile)
    assert isinstance(scheduler, SLOAwareScheduler)
    assert scheduler.estimator.model == CALIBRATION.model
    with pytest.raises(FormatError, match="was measured with m float32 cpu, not with other float32 cpu"):
        build_scheduler(FakeTarget(card=replace(CARD, model_id="other")), with_profile)


def _estimated(state: Path, **fields: Any) -> BatchTimeModel:
    """What a server that keeps its state there starts from."""
    given = replace(config(system="wisp-plus", security=SecurityConfig(state_dir=state)), **fields)
    scheduler = build_scheduler(FakeTarget(), given)
    assert isinstance(scheduler, SLOAwareScheduler)
    return scheduler.estimator.model


def _fail(*_: object) -> None:
    message = "too few"
    raise FormatError(message)


def test_without_a_profile_they_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start keeps what it measured; later ones measure again only when told to."""
    monkeypatch.setattr(calibration, "calibrate", lambda *_: CALIBRATION)
    assert _estimated(tmp_path) == CALIBRATION.model
    other = replace(CALIBRATION, model=BatchTimeModel(fixed_s=1.0))
    monkeypatch.setattr(calibration, "calibrate", lambda *_: other)
    assert _estimated(tmp_path) == CALIBRATION.model
    assert _estimated(tmp_path, target=ModelConfig("fake", threads=2)) == other.model, (
        "another number of threads is another machine"
    )
    assert _estimated(tmp_path, recalibrate=True) == other.model
    assert _estimated(tmp_path) == other.model


def test_a_kept_measurement_that_is_damaged_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start never fails because of it."""
    monkeypatch.setattr(calibration, "calibrate", lambda *_: CALIBRATION)
    _estimated(tmp_path)
    (kept,) = (tmp_path / "batch-times").iterdir()
    kept.write_text("{")
    assert _estimated(tmp_path) == CALIBRATION.model
    assert Calibration.load(kept) == CALIBRATION


def test_without_a_measurement_batch_times_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where measuring fails or is not wanted, the server begins with rough ones."""
    monkeypatch.setattr(calibration, "calibrate", _fail)
    assert _estimated(tmp_path) == BatchTimeModel()
    assert _estimated(tmp_path, calibrate=False) == BatchTimeModel()
    assert not list(tmp_path.iterdir()), "nothing is kept"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"system": "best"}, "system must be one of centralized, .*, not 'best'"),
        ({"profile": Path("profile.json")}, "the system fixed asks for no batch times"),
        ({"scheduler_settings": {"fill": 1.0}}, "it has no scheduler settings"),
        ({"system": "centralized-draft"}, "drafts on the server: name a draft model with --draft"),
        ({"draft": ModelConfig("small")}, "does not draft on the server: give --draft to `wisp edge`"),
        ({"system": "wisp-plus", "scheduler_settings": {"fil": 1.0}}, "no scheduler setting 'fil'"),
    ],
)
def test_wrong_combinations_are_refused(fields: dict[str, Any], message: str) -> None:
    """With what was wrong."""
    with pytest.raises(ConfigError, match=message):
        build_scheduler(FakeTarget(), config(**{"calibrate": False, **fields}))


# Under contention

MODEL = BatchTimeModel(fixed_s=0.02, per_token_s=0.001)
LIMITS = SchedulerLimits(kv_capacity_tokens=1 << 20)
NUM_TALKERS, TALK_TOKENS, TOKENS_PER_S, STARTUP = 6, 120, 12.0, 0.3
NUM_READERS, PROMPT_TOKENS, FIRST_TOKEN = 6, 2000, 6.0


@dataclass
class Fleet:
    """Talkers draft and want a steady stream; readers come with long prompts and want a first token."""

    scheduler: Scheduler
    met: int = 0
    missed: int = 0

    async def serve(self) -> None:
        engine_time = VirtualEngineTime()
        outputs: dict[tuple[int, ...], tuple[int, ...]] = {(1, who): (7,) * 500 for who in range(NUM_TALKERS)}
        outputs |= {(2, who, *(3,) * PROMPT_TOKENS): (7, 7) for who in range(NUM_READERS)}
        target = TimedTarget(fake_card(), RecordedOutputs(outputs), MODEL.predict, engine_time.sleep)
        self.clock = asyncio.get_running_loop().time
        self.loop = VerificationLoop(target, self.scheduler, self.clock, engine_time)
        task = asyncio.create_task(self.loop.run())
        prompts = iter(outputs)
        talkers = [self.talk(next(prompts), 0.05 * index) for index in range(NUM_TALKERS)]
        readers = [self.read(next(prompts), 1.0 + 2.0 * index) for index in range(NUM_READERS)]
        await asyncio.gather(*talkers, *readers)
        self.loop.stop()
        await task

    async def talk(self, prompt: tuple[int, ...], start: float) -> None:
        await asyncio.sleep(start)
        name = await self.open(prompt, TALK_TOKENS)
        await self.round(name, 0, self.clock() + 1.0)
        first = self.clock()
        for number in range(1, TALK_TOKENS - 4, 4):
            await asyncio.sleep(0.15)  # drafting
            await self.round(name, 3, first + STARTUP + number / TOKENS_PER_S)
        self.loop.close(name)

    async def read(self, prompt: tuple[int, ...], start: float) -> None:
        await asyncio.sleep(start)
        name = await self.open(prompt, 2)
        await self.round(name, 0, self.clock() + FIRST_TOKEN)
        self.loop.close(name)

    async def open(self, prompt: tuple[int, ...], max_tokens: int) -> str:
        name = str(prompt[:2])
        self.scheduler.admit(
            SessionDemand(name, len(prompt), max_tokens, SLO("talk", TOKENS_PER_S, FIRST_TOKEN)), self.clock()
        )
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        request = GenerationRequest(prompt, len(prompt), SamplingParams(), StopRules(max_tokens))
        self.loop.open(name, "me", request, opened.set_result)
        await opened
        return name

    async def round(self, name: str, num_drafted: int, deadline: float) -> None:
        answered: asyncio.Future[StepOutcome | EngineError] = asyncio.get_running_loop().create_future()

        def deliver(outcome: StepOutcome | EngineError, _: Hints) -> None:
            answered.set_result(outcome)

        draft = (DraftedToken(7),) * num_drafted
        self.loop.submit(Round(name, 1, draft, deliver, self.clock(), (0.9,) * num_drafted, deadline))
        assert isinstance(await answered, StepOutcome)
        if self.clock() <= deadline:
            self.met += 1
        else:
            self.missed += 1


def test_under_contention_more_deadlines_are_met_than_by_first_come_first_served() -> None:
    """Long prompts come in while others talk: their chunks give way, and they are in time all the same."""
    fcfs = Fleet(FCFSScheduler(LIMITS))
    run(fcfs.serve())
    slo = Fleet(SLOAwareScheduler(LIMITS, VerificationTimeEstimator(MODEL)))
    run(slo.serve())
    assert fcfs.met + fcfs.missed == slo.met + slo.missed
    assert slo.missed < fcfs.missed / 4


def test_a_scheduler_that_learned_nothing_before_learns_while_it_serves() -> None:
    """With rough batch times at the start, deadlines are met almost as often."""
    fleet = Fleet(SLOAwareScheduler(LIMITS, VerificationTimeEstimator(BatchTimeModel())))
    run(fleet.serve())
    assert fleet.scheduler.estimator.errors.mean < 0.1  # type: ignore[attr-defined]
    assert fleet.missed < fleet.met / 10
