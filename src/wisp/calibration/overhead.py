"""What a server takes beside its engine's batches, from the log of those that it ran (`wisp serve --batch-log`).

    s(B) = a + e*|B| + b*N          every coefficient >= 0, |B| requests, N positions

of two times: by how much batches last longer than they do for the engine by itself (sampled verdicts, the hand-over to
its thread, an event loop that wants the same processor), and what passes after a batch before the next can begin
(verdicts sent, requests taken, the next batch decided on). Plain least squares: how much a server gets done depends on
means, rare long times included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from wisp.calibration.nnls import nonnegative_least_squares
from wisp.errors import FormatError
from wisp.formats.batch_log import LoggedBatch
from wisp.policy.batch_time import BatchShape, BatchTime, BatchTimeModel

MIN_BATCHES = 100


@dataclass(frozen=True, slots=True)
class ServerOverhead:
    """Seconds, by the shape of a batch."""

    within: BatchTimeModel
    """Added to the batch."""
    after: BatchTimeModel
    """Before the next."""

    def __str__(self) -> str:
        return f"{_terms(self.within)} within a batch and {_terms(self.after)} after it"

    def on(self, batch_time: BatchTime) -> BatchTime:
        """What batches take on the server that take `batch_time` on its engine."""
        return lambda shape: batch_time(shape) + self.within.predict(shape)


def fit_overhead(batches: Sequence[LoggedBatch], batch_time: BatchTime) -> ServerOverhead:
    """From batches in the order in which one server ran them; not from those that it drafted in itself.

    Raises FormatError for too few.
    """
    pairs = [(one, later) for one, later in pairwise(batches) if not (one.failed or one.drafted)]
    if len(pairs) < MIN_BATCHES:
        raise FormatError(f"a log of {len(batches)} batches is too short to fit a server's own time to")
    shapes = [one.shape for one, _ in pairs]
    within = [one.elapsed - batch_time(shape) for (one, _), shape in zip(pairs, shapes, strict=True)]
    after = [later.started - one.started - one.elapsed - later.waited for one, later in pairs]
    return ServerOverhead(_fit(shapes, within), _fit(shapes, after))


def _terms(model: BatchTimeModel) -> str:
    fixed, per_request, per_position = (
        f"{1e3 * seconds + 0.0:.2g}" for seconds in (model.fixed_s, model.per_request_s, model.per_token_s)
    )
    return f"{fixed} + {per_request} per request + {per_position} per position ms"


def _fit(shapes: Sequence[BatchShape], times: Sequence[float]) -> BatchTimeModel:
    rows = np.array([(1, shape.num_requests, shape.num_new) for shape in shapes], dtype=np.float64)
    (fixed, per_request, per_token), _ = nonnegative_least_squares(rows, np.array(times))
    return BatchTimeModel(float(fixed), float(per_token), per_request_s=float(per_request))
