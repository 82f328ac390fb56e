"""Compares forms of the batch-time estimator on data that it is given: python tools/compare_batch_time_forms.py PATH...

A PATH is a file of `wisp calibrate` (measured steps of an engine), or a folder with dense.csv, per_sequence.csv and
attention.csv: kernel times in microseconds as LLMServingSim's profiler writes them (vLLM kernels on one GPU). A batch's
time is then put together from its kernels: every kernel of a layer at that number of positions, attention, head, sampler.

Forms (N new positions, Q attended pairs, C cached tokens, B requests; no coefficient is negative):

    linear      a + b N + c Q + d C + e B
    hinge       a + b N + b2 max(0, N - ridge) + c Q + d C + e B
    several     a + b N + b2 max(0, N - ridge) + c Q + d C + e B + f [N > 1]     what policy/batch_time.py has
    hypot       a + hypot(w, b N) + c Q + d C + e B + f [N > 1]                  the soft ridge of a roofline
    roofline    a + hypot(w, b N) + max(d C, c Q) + e B + f [N > 1]              reading and computing attention overlap
    knots       the time of N new positions interpolated between knots at 1, 2, 3, 4, 8, 16, ... + c Q + d C + e B
    ... + steps the form times a correction for N in steps (1, 2, 3, 4-5, 6-8, 9-16, ...), the medians of its residuals

Each is fitted to some of the batches and judged on others: every other one; or the smallest 60 % in positions, in cached
tokens per request, or in requests, and judged on the rest. Needs scipy, which WISP does not.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from wisp.formats.calibration import Calibration
from wisp.policy.batch_time import BatchShape

Vector = NDArray[np.float64]
Predictor = Callable[["Batches"], Vector]

PER_LAYER = {
    "qkv_proj": 1,
    "qk_norm": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
    "layernorm": 2,
}
"""Kernels of one layer, and how often each runs in it."""
NUM_LAYERS = 64
"""Of Qwen3-32B, the model of the tables."""
MAX_CACHED = 100_000
"""Tokens whose keys and values (256 KiB each) fit beside the model's weights into 96 GB; batches of more are left out."""
RIDGES = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
KNOTS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
STEPS = (1, 2, 3, 5, 8, 16, 32, 64, 128, 256, 512, 1024)
"""The last N of each step."""
SHRINKAGE = 2.0
"""Batches that speak for no correction in each step."""
TRAINED = 0.6


@dataclass(frozen=True)
class Batches:
    """Columns: the shapes and the times of many batches."""

    new: Vector
    attended: Vector
    cached: Vector
    requests: Vector
    time: Vector

    @classmethod
    def of(cls, shapes: Sequence[BatchShape], times: Sequence[float]) -> Batches:
        columns = [(shape.num_new, shape.num_attended, shape.num_cached, shape.num_requests) for shape in shapes]
        return cls(*np.array(columns, dtype=np.float64).T, np.array(times))

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Batches:
        return Batches(*(column[chosen] for column in vars(self).values()))

    @property
    def context(self) -> Vector:
        return self.cached / self.requests


# Data


def load(path: Path) -> Batches:
    """From a calibration or a folder of kernel tables."""
    return _kernels(path) if path.is_dir() else _calibration(path)


def _calibration(path: Path) -> Batches:
    """Processor times where there are some: others on the machine hardly disturb them."""
    samples = [one.on_cpu if one.cpu_times else one for one in Calibration.load(path).samples]
    return Batches.of([one.shape for one in samples], [one.time for one in samples])


def _kernels(folder: Path) -> Batches:
    dense, head = _curves(folder / "dense.csv", "tokens"), _curves(folder / "per_sequence.csv", "sequences")
    shapes, times = [], []
    with (folder / "attention.csv").open() as file:
        for row in csv.DictReader(file):
            chunk, cached, decodes, context = (int(row[name]) for name in list(row)[:4])
            members = [(chunk, cached)] * (chunk > 0) + [(1, context)] * decodes
            shape = BatchShape.of_members(members)
            if not 0 < shape.num_new <= 2048 or shape.num_cached > MAX_CACHED:
                continue
            layer = sum(often * _at(dense[name], shape.num_new) for name, often in PER_LAYER.items())
            once = [_at(curve, shape.num_requests) for curve in head.values()]
            once += [_at(dense[name], shape.num_new) for name in ("embedding", "final_layernorm")]
            shapes.append(shape)
            times.append(1e-6 * (NUM_LAYERS * (layer + float(row["time_us"])) + sum(once)))
    return Batches.of(shapes, times)


def _curves(path: Path, column: str) -> dict[str, list[tuple[float, float]]]:
    curves = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            curves[row["layer"]].append((float(row[column]), float(row["time_us"])))
    return {name: sorted(curve) for name, curve in curves.items()}


def _at(curve: list[tuple[float, float]], x: float) -> float:
    return float(np.interp(x, *zip(*curve, strict=True)))


# Forms


def _non_negative(columns: Callable[[Batches], list[Vector]], train: Batches) -> tuple[float, Predictor]:
    """Least relative squares, and their residual."""
    rows = np.array(columns(train)).T / train.time[:, None]
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    solution, residual = nnls(rows / scale, np.ones(len(rows)), maxiter=1000)
    return float(residual), lambda batches: np.array(columns(batches)).T @ (solution / scale)


def _rest(batches: Batches) -> list[Vector]:
    return [batches.attended, batches.cached, batches.requests]


def _linear(train: Batches) -> Predictor:
    return _non_negative(lambda b: [np.ones_like(b.new), b.new, *_rest(b)], train)[1]


def _several(batches: Batches) -> Vector:
    return (batches.new > 1).astype(np.float64)


def _hinge(train: Batches, *more: Callable[[Batches], Vector]) -> Predictor:
    def fitted(ridge: float) -> tuple[float, Predictor]:
        def columns(b: Batches) -> list[Vector]:
            above = np.maximum(0.0, b.new - ridge)
            return [np.ones_like(b.new), b.new, above, *_rest(b), *(column(b) for column in more)]

        return _non_negative(columns, train)

    return min((fitted(ridge) for ridge in RIDGES), key=lambda found: found[0])[1]


def _hinge_and_several(train: Batches) -> Predictor:
    return _hinge(train, _several)


def _knots(train: Batches) -> Predictor:
    inside = [knot for knot in KNOTS if knot <= train.new.max()]

    def columns(batches: Batches) -> list[Vector]:
        hats = [np.interp(batches.new, inside, np.eye(len(inside))[i]) for i in range(len(inside))]
        beyond = np.maximum(0.0, batches.new - inside[-1]) / (inside[-1] - inside[-2])
        hats[-1] = hats[-1] + beyond
        hats[-2] = hats[-2] - beyond
        return [*hats, *_rest(batches)]

    return _non_negative(columns, train)[1]


def _curved(train: Batches, attention: Callable[[Vector, Vector], Vector]) -> Predictor:
    """Non-linear in its coefficients: relative least squares on their logarithms, from several beginnings."""
    typical = [train.new, train.attended, train.cached, train.requests]
    half = float(np.quantile(train.time, 0.05)) / 2
    units = np.array([half, half, half, *(float(np.median(train.time / np.maximum(x, 1.0))) for x in typical)])

    def predict(logs: Vector, b: Batches) -> Vector:
        a, w, f, per_new, c, d, e = units * np.exp(np.clip(logs, -30.0, 10.0))
        return (
            a
            + np.hypot(w, per_new * b.new)
            + attention(c * b.attended, d * b.cached)
            + e * b.requests
            + (f * _several(b))
        )

    starts = [np.array([0.0, 0.0, -2.0, slope, other, other, other]) for slope in (-1.0, 0.0) for other in (-5.0, -2.0)]
    fits = [least_squares(lambda logs: predict(logs, train) / train.time - 1.0, start) for start in starts]
    best = min(fits, key=lambda found: float(found.cost)).x
    return lambda batches: predict(best, batches)


def _hypot(train: Batches) -> Predictor:
    return _curved(train, np.add)


def _roofline(train: Batches) -> Predictor:
    return _curved(train, np.maximum)


def _with_steps(form: Callable[[Batches], Predictor]) -> Callable[[Batches], Predictor]:
    """The form, corrected by the median of measured over predicted in each step of N."""

    def fit(train: Batches) -> Predictor:
        predict = form(train)
        ratios, steps = np.log(train.time / predict(train)), np.searchsorted(STEPS, train.new)
        corrections = np.zeros(len(STEPS) + 1)
        for step in np.unique(steps):
            mine = ratios[steps == step]
            corrections[step] = np.median(mine) * len(mine) / (len(mine) + SHRINKAGE)
        highest = steps.max()
        return lambda b: predict(b) * np.exp(corrections[np.minimum(np.searchsorted(STEPS, b.new), highest)])

    return fit


FORMS = {
    "linear": _linear,
    "hinge": _hinge,
    "several": _hinge_and_several,
    "hypot": _hypot,
    "roofline": _roofline,
    "knots": _knots,
    "several + steps": _with_steps(_hinge_and_several),
    "hypot + steps": _with_steps(_hypot),
}


# Comparison


def splits(batches: Batches) -> dict[str, NDArray[np.bool_]]:
    """Which batches are fitted to; the others are judged on."""
    parts = {"every other batch": np.arange(len(batches.time)) % 2 == 0}
    for name in ("new", "context", "requests"):
        values = getattr(batches, name)
        parts[f"larger: {name}"] = values <= np.quantile(values, TRAINED)
    return parts


def main() -> None:
    """Print a table for each path."""
    for path in map(Path, sys.argv[1:]):
        batches = load(path)
        print(f"{path.name}: {len(batches.time)} batches; relative errors on batches that were not fitted to\n")
        parts = splits(batches)
        print("| form | " + " | ".join(f"{name} (mean, p95, bias)" for name in parts) + " |")
        print("|---" * (len(parts) + 1) + "|")
        for name, form in FORMS.items():
            cells = [_judged(form(batches[train]), batches[~train]) for train in parts.values()]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        print()


def _judged(predict: Predictor, held_out: Batches) -> str:
    off = predict(held_out) / held_out.time - 1.0
    return f"{np.abs(off).mean():.1%}, {np.quantile(np.abs(off), 0.95):.1%}, {np.median(off):+.1%}"


if __name__ == "__main__":
    main()
