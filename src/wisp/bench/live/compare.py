"""The comparison: cell by cell, seed by seed, the systems in turns, each with the fleet that its search wants next."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import Progress, TaskID
from tokenizers import Tokenizer

from wisp.bench.live.devices import DriverModels, InlineExecutor
from wisp.bench.live.fleet import Workload
from wisp.bench.live.inputs import CellInputs, batch_time, batch_times_file, cell_inputs, trained_predictor
from wisp.bench.live.point import Load, Timing, run_point
from wisp.bench.live.results import Point, Results
from wisp.bench.live.servers import Served, TargetUnderTest, served
from wisp.bench.live.settings import BenchSettings, Cell
from wisp.bench.live.sizing import first_size
from wisp.config import EdgeConfig, ModelConfig
from wisp.edge.app import load_drafter
from wisp.engines.base import DraftEngine
from wisp.engines.replay import ReplayDrafter
from wisp.formats.predictor import TrainedPredictor
from wisp.policy.batch_time import BatchShape, BatchTime
from wisp.sim.traces import load_trace

_POINT_OVERHEAD = 3.0
"""Seconds that connecting and adding up take at most, for the time limit."""


@dataclass(frozen=True, slots=True)
class _CellRun:
    """One cell, ready to be measured."""

    cell: Cell
    inputs: CellInputs
    calibration: str
    expected: BatchTime
    """What batches are expected to last."""
    trained: TrainedPredictor | None
    start: int
    """Devices that every system is tried with first."""
    deadline: float


@dataclass(slots=True)
class Comparison:
    """A run of `wisp bench`."""

    settings: BenchSettings
    folder: Path
    results: Results
    progress: Progress
    deadline: float = float("inf")
    """By `time.monotonic`: no point is begun that may end later."""
    keep_logs: bool = False
    """Whether the servers' logs of batches stay in the folder."""

    async def run(self) -> None:
        """Measure what the results lack. Raises errors of the tree."""
        trained = trained_predictor(self.settings)
        preparing = self.progress.add_task("preparing", total=None)
        calibration = await batch_times_file(self.settings, self.folder)
        inputs = [await cell_inputs(self.settings, cell, self.folder) for cell in self.settings.cells]
        self.progress.remove_task(preparing)
        for number, (cell, given) in enumerate(zip(self.settings.cells, inputs, strict=True)):
            share = (self.deadline - time.monotonic()) / (len(inputs) - number)
            expected = batch_time(self.settings, calibration)
            start = self.settings.search.start or first_size(self.settings, cell, given.records, expected)
            run = _CellRun(cell, given, calibration, expected, trained, start, time.monotonic() + share)
            await self._run_cell(run)

    async def _run_cell(self, run: _CellRun) -> None:
        settings, search = self.settings, self.settings.search
        total = len(settings.systems) * settings.num_seeds * search.max_points
        bar = self.progress.add_task(run.cell.name, total=total, completed=self._num_done(run.cell))
        wanted = [size for one in settings.systems for seed in self._seeds if (size := self._next(run, one, seed))]
        if wanted and self._in_time(run, wanted[0]):
            async with self._servers(run) as servers, self._models(run) as models:
                for seed in self._seeds:
                    await self._run_seed(run, seed, servers, models, bar)
        self.progress.update(bar, completed=total)

    async def _run_seed(
        self, run: _CellRun, seed: int, servers: Sequence[Served], models: DriverModels, bar: TaskID
    ) -> None:
        """The systems in turns until no search wants more, or the time is up."""
        workload = self._workload(run)
        while todo := [(one, size) for one in servers if (size := self._next(run, one.system, seed))]:
            for one, size in todo:
                if not self._in_time(run, size):
                    return
                timing = self._timing(run, size)
                load = Load(run.cell.fleet, workload, timing, seed, size)
                at = self.progress.add_task(f"  {one.system}, {size} devices", total=timing.longest)
                measures = await run_point(one, load, models, run.expected, self._advance(at))
                self.progress.remove_task(at)
                self.results.add(Point(run.cell.name, one.system, seed, size, measures))
                self.progress.update(bar, completed=self._num_done(run.cell))

    def _in_time(self, run: _CellRun, num_devices: int) -> bool:
        """Whether one more point surely ends before the deadline."""
        longest = self._timing(run, num_devices).longest
        return time.monotonic() + longest + _POINT_OVERHEAD <= run.deadline

    def _timing(self, run: _CellRun, num_devices: int) -> Timing:
        """Of a point: where there are contexts, every device's first one is read before anything is judged."""
        timing, context = self.settings.timing.of_fleet(num_devices), run.cell.context_tokens
        if context is None:
            return timing
        return timing.with_reading(num_devices * run.expected(BatchShape.of_members([(context, 0)])))

    def _advance(self, task: TaskID) -> Callable[[float], None]:
        return lambda seconds: self.progress.update(task, completed=seconds)

    @property
    def _seeds(self) -> range:
        return range(self.settings.seed, self.settings.seed + self.settings.num_seeds)

    def _num_done(self, cell: Cell) -> int:
        return sum(point.cell == cell.name for point in self.results.points)

    def _next(self, run: _CellRun, system: str, seed: int) -> int | None:
        """The fleet that a system's search wants next."""
        search = self.settings.search
        tried = self.results.tried(run.cell.name, system, seed, search.level)
        return search.next_size(tried, run.start)

    def _workload(self, run: _CellRun) -> Workload:
        lengths = () if self.settings.workload is None else load_trace(self.settings.workload)
        return Workload(run.inputs.records, [slo.name for slo in self.settings.slos], lengths, run.cell.questions)

    @asynccontextmanager
    async def _servers(self, run: _CellRun) -> AsyncGenerator[list[Served], None]:
        """One for each system; they start one after the other, and only one is under load at a time."""
        settings = self.settings
        replay = run.inputs.trace if settings.engine == "timed" else None
        target = TargetUnderTest(
            settings.target,
            settings.draft if settings.need_drafter else None,
            settings.slos,
            run.calibration,
            replay,
            settings.kv_tokens,
            settings.predictor,
        )
        starting = self.progress.add_task("starting servers", total=len(settings.systems))
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="wisp-servers-")))
            servers = []
            for system in settings.systems:
                log = (self.folder if self.keep_logs else folder) / f"batches-{_slug(run.cell)}-{system}.jsonl"
                servers.append(await stack.enter_async_context(served(system, target, folder, log)))
                self.progress.advance(starting)
            self.progress.remove_task(starting)
            yield servers

    @asynccontextmanager
    async def _models(self, run: _CellRun) -> AsyncGenerator[DriverModels, None]:
        """The drafter of all devices: replayed, or the real one on a thread."""
        settings = self.settings
        engine: DraftEngine = ReplayDrafter(run.inputs.header, run.inputs.records)
        executor: Executor = InlineExecutor()
        if settings.real_drafts:
            config = EdgeConfig("127.0.0.1:1", draft=ModelConfig(str(settings.draft)))
            engine = await asyncio.to_thread(load_drafter, config)
            executor = ThreadPoolExecutor(1, thread_name_prefix="wisp-drafter")
        tokenizer = Tokenizer.from_file(str(settings.target / "tokenizer.json"))
        try:
            yield DriverModels(run.inputs.header, engine, executor, tokenizer, run.trained)
        finally:
            executor.shutdown()
            engine.shutdown()


def _slug(cell: Cell) -> str:
    """A cell's name as a part of a file's."""
    return re.sub(r"\W+", "-", cell.name)
