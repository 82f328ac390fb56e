"""The emulated devices of the demo: real drafters over the real wire, each with a drafting speed and a distance of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from wisp.config import EdgeConfig, ModelConfig
from wisp.demo.pair import DRAFT, PREDICTOR
from wisp.demo.view import Detokenise, Pane
from wisp.edge.app import connected_device
from wisp.edge.decode import generate
from wisp.edge.device import Device
from wisp.edge.settings import GenerationSettings
from wisp.policy.session import RoundRecord
from wisp.types import SamplingParams, TokenId


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """What a device is made to look like; times in seconds, added to what this machine takes itself."""

    name: str
    draft_time: float
    rtt: float

    @property
    def title(self) -> str:
        """Fits the narrowest pane."""
        return f"{self.name}, emulated +{self.draft_time * 1e3:.0f} ms/token +{self.rtt * 1e3:.0f} ms RTT"


FLEET = (
    DeviceKind("workstation", 0.002, 0.005),
    DeviceKind("laptop", 0.010, 0.010),
    DeviceKind("office PC", 0.015, 0.030),
    DeviceKind("Jetson", 0.025, 0.020),
    DeviceKind("phone", 0.040, 0.060),
    DeviceKind("Raspberry Pi", 0.060, 0.020),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One completion to make."""

    prompt: tuple[TokenId, ...]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of a job."""

    tokens: tuple[TokenId, ...]
    records: tuple[RoundRecord, ...]


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """A connected device and its pane on the screen."""

    device: Device
    pane: Pane

    async def complete(self, job: Job, max_tokens: int, *, plain: bool = False) -> Completion:
        """Generate one completion; `plain` leaves everything to the target."""
        settings = GenerationSettings(
            sampling=job.sampling,
            max_tokens=max_tokens,
            stop_token_ids=self.device.target.eos_token_ids,
            stop_strings=(),
            num_draft_tokens=0 if plain else None,
        )
        generation = self.device.generation(job.prompt, settings, job.sampling.choice_index)
        self.pane.session = generation.session
        self.pane.status = "greedy" if job.sampling.greedy else f"sampling, seed {job.sampling.seed}"
        async for _ in generate(generation):
            pass
        tokens = tuple(generation.session.tokens[len(job.prompt) :])
        return Completion(tokens, tuple(generation.session.records))


@asynccontextmanager
async def fleet(address: str, num_draft_tokens: int, stop_rule: str) -> AsyncGenerator[Sequence[FleetDevice], None]:
    """All devices of the demo, connected to the server at `address`."""
    async with AsyncExitStack() as stack:
        devices = []
        for kind in FLEET:
            config = EdgeConfig(
                server=address,
                draft=ModelConfig(str(DRAFT)),
                max_draft_tokens=num_draft_tokens,
                stop_rule=stop_rule,
                predictor=PREDICTOR,
                emulated_draft_time=kind.draft_time,
                emulated_rtt=kind.rtt,
            )
            device = await stack.enter_async_context(connected_device(config))
            devices.append(FleetDevice(device, Pane(kind.title, _detokenise(device))))
        yield devices


def _detokenise(device: Device) -> Detokenise:
    return lambda tokens: device.tokenizer.decode(list(tokens), skip_special_tokens=False)
