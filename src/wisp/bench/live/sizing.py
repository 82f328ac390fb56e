"""The fleet that a search starts with, from the batch times alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from wisp.bench.live.settings import BenchSettings, Cell
from wisp.formats.trace import TraceRecord
from wisp.policy.batch_time import BatchShape, BatchTime

START_SHARE = 0.6
"""Of what the batch times promise: every system should be able to serve the first fleet."""


def first_size(settings: BenchSettings, cell: Cell, records: Sequence[TraceRecord], batch_time: BatchTime) -> int:
    """A share of the devices that plain decoding would serve if nothing but batches took time; at least 1."""
    speed = fmean(slo.tokens_per_s for slo in settings.slos)
    num_prompt = round(fmean(record.num_prompt_tokens for record in records))
    num_output = round(fmean(len(record.chains) for record in records))
    playing = num_output / speed
    share = playing / (playing + cell.fleet.think_time)
    cached = num_prompt + num_output // 2
    context = cell.context_tokens or 0
    read = batch_time(BatchShape.of_members([(num_prompt - context, context)]))
    if context:
        read += batch_time(BatchShape.of_members([(context, 0)])) / cell.questions

    def load(num_devices: int) -> float:
        """Share of the engine's time that they need."""
        active = max(1, round(num_devices * share))
        step = batch_time(BatchShape.of_members([(1, cached)] * active))
        return step * speed + active / playing * read

    served = max((size for size in range(1, settings.search.largest + 1) if load(size) <= 1.0), default=1)
    return max(1, round(START_SHARE * served))
