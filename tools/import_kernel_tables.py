"""Derives a profile of batch times from tables of measured kernels, for `wisp simulate --profile`.

    python tools/import_kernel_tables.py FOLDER OUT

FOLDER holds the tables of Qwen3-32B on one GPU as the profiler of LLMServingSim writes them, times in us:

    dense.csv          layer, tokens, time_us                                        of each kernel, per layer
    attention.csv      prefill_chunk, kv_prefill, n_decode, kv_decode, time_us       of one layer
    per_sequence.csv   layer, sequences, time_us                                     head and sampler

A batch of N positions, V of which get logits, takes

    fixed + request * |B| + embedding(N) + L * (dense(N) + attention) + norm(N) + head(V) + sampler(V)

Attention is always one that was measured. Batches of single positions run the kernel of decoding; all others that of
mixed batches, where the smallest chunk that was measured stands for a request with several new tokens. Assumed are the
fixed and the per-request time of the host, and that the further new tokens of a request cost no attention time.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from wisp.calibration.fit import fit, fit_all, repeat_errors
from wisp.calibration.measured import MeasuredBatchTime, calibration_half, hardware_half
from wisp.formats.calibration import BatchSample, Calibration
from wisp.policy.batch_time import BatchTime
from wisp.sim.hardware import GPUS, MODELS, Roofline

MODEL, DEVICE = "qwen3-32b", "rtx-pro-6000"
NUM_LAYERS = 64
MOST_OF_A_KIND = 600
"""Samples."""
MAX_NEW_TOKENS = 9
VERIFICATION = 16
"""The smallest chunk that was measured stands for a request with several new tokens."""
MAX_CACHED_TOKENS = 1 << 18
"""Of all members together; about three times what fits beside the weights."""
PER_LAYER = (
    "layernorm",
    "layernorm",
    "qkv_proj",
    "qk_norm",
    "rotary_emb",
    "o_proj",
    "gate_up_proj",
    "act_fn",
    "down_proj",
)
ONCE = ("embedding", "final_layernorm")
PER_SEQUENCE = ("lm_head", "sampler")
FIXED_S, PER_REQUEST_S = 0.005, 20e-6
SOURCE = (
    "Derived by tools/import_kernel_tables.py from kernel times of vLLM 0.19, Qwen3-32B in bf16 on one RTX PRO 6000: "
    "LLMServingSim (casys-kaist, commit 5daddb2), profiler/perf/RTXPRO6000/Qwen/Qwen3-32B/tp1, MIT licence, Copyright (c) "
    "2024 CASYS Lab at KAIST. Assumed: 5 ms per batch and 20 us per request of the host; further new tokens of a request "
    "cost no attention time."
)

Shape = tuple[int, int, int, int]
"""Prefill chunk, its cached tokens, decoding requests, cached tokens of each."""
Table = dict[str, tuple[np.ndarray, np.ndarray]]
"""Of each kernel the counts and the seconds."""


@dataclass(frozen=True)
class Tables:
    """Everything in FOLDER, in seconds."""

    dense: Table
    per_sequence: Table
    attention: dict[Shape, float]
    """Of one layer."""

    @classmethod
    def read(cls, folder: Path) -> Tables:
        """Read the three tables."""
        attention: dict[Shape, float] = {}
        for row in _rows(folder / "attention.csv"):
            chunk, chunk_cached = int(row["prefill_chunk"]), int(row["kv_prefill"])
            attention[chunk, chunk_cached, int(row["n_decode"]), int(row["kv_decode"])] = float(row["time_us"]) / 1e6
        return cls(
            _kernels(folder / "dense.csv", "tokens"), _kernels(folder / "per_sequence.csv", "sequences"), attention
        )

    def time(self, shape: Shape, members: tuple[tuple[int, int], ...]) -> float:
        """Seconds that a batch takes whose attention takes the time of `shape`."""
        tokens = sum(new for new, _ in members)
        logits = sum(new if new <= MAX_NEW_TOKENS else 1 for new, _ in members)
        dense = sum(_at(self.dense[name], tokens) for name in PER_LAYER)
        rest = sum(_at(self.dense[name], tokens) for name in ONCE)
        head = sum(_at(self.per_sequence[name], logits) for name in PER_SEQUENCE)
        host = FIXED_S + PER_REQUEST_S * len(members)
        return host + NUM_LAYERS * (dense + self.attention[shape]) + rest + head

    def samples(self, rng: np.random.Generator) -> tuple[BatchSample, ...]:
        """Plain decoding, verifications, chunks, chunks with verifications: none twice, in an order that means nothing."""
        chosen = [shape for pool in self._pools() for shape in _some(pool, rng)]
        return tuple(self._sample(chosen[index], rng) for index in rng.permutation(len(chosen)))

    def _pools(self) -> list[list[Shape]]:
        fitting = [shape for shape in self.attention if shape[1] + shape[2] * shape[3] <= MAX_CACHED_TOKENS]
        decoding = [shape for shape in fitting if not shape[0]]
        verifying = [shape for shape in fitting if _verifies(shape)]
        chunks = [shape for shape in fitting if not shape[2]]
        mixed = [shape for shape in fitting if shape[0] and shape[2] and not _verifies(shape)]
        return [decoding, verifying, chunks, mixed]

    def _sample(self, shape: Shape, rng: np.random.Generator) -> BatchSample:
        """A batch whose requests verify some number of drafted tokens each."""
        chunk, chunk_cached, num_requests, cached = shape
        new = int(rng.integers(2, MAX_NEW_TOKENS + 1))
        if not chunk:
            members = ((1, cached),) * num_requests
        elif _verifies(shape):
            members = ((new, cached),) * (num_requests + 1)
        else:
            members = ((chunk, chunk_cached),) + ((new, cached),) * num_requests
        return BatchSample(members, (self.time(shape, members),))


def _verifies(shape: Shape) -> bool:
    """Whether a measured shape stands for requests with several new tokens each, all on caches of one length."""
    chunk, chunk_cached, num_requests, cached = shape
    return chunk == VERIFICATION and num_requests > 0 and chunk_cached == cached


def _some(pool: list[Shape], rng: np.random.Generator) -> list[Shape]:
    return [pool[index] for index in rng.permutation(len(pool))[:MOST_OF_A_KIND]]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _kernels(path: Path, count: str) -> Table:
    times: dict[str, dict[int, float]] = defaultdict(dict)
    for row in _rows(path):
        times[row["layer"]][int(row[count])] = float(row["time_us"]) / 1e6
    return {name: (np.array(sorted(of)), np.array([of[key] for key in sorted(of)])) for name, of in times.items()}


def _at(kernel: tuple[np.ndarray, np.ndarray], count: int) -> float:
    """Linear between the counts that were measured, and on along the last of them."""
    counts, times = kernel
    if count > counts[-1]:
        slope = (times[-1] - times[-8]) / (counts[-1] - counts[-8])
        return float(times[-1] + slope * (count - counts[-1]))
    return float(np.interp(count, counts, times))


def _kind(sample: BatchSample) -> str:
    first, last = sample.members[0], sample.members[-1]
    if first[0] == 1:
        return "plain decoding"
    if first[0] <= MAX_NEW_TOKENS:
        return "verifications"
    return "a chunk" if first == last else "a chunk and verifications"


def _print_errors(samples: Sequence[BatchSample]) -> None:
    """By kind of batch: of the fitted form and of interpolation on the half that they do not know, and of the roofline."""
    judged = calibration_half(samples)
    models: dict[str, BatchTime] = {
        "fitted form": fit_all(hardware_half(samples)).predict,
        "interpolated": MeasuredBatchTime(samples),
        "roofline": Roofline(GPUS[DEVICE], MODELS[MODEL], fixed_s=FIXED_S, per_request_s=PER_REQUEST_S),
    }
    for kind in sorted({_kind(sample) for sample in judged}):
        those = [sample for sample in judged if _kind(sample) == kind]
        print(f"{kind}: {len(those)} batches")
        for name, model in models.items():
            off = np.array([model(sample.shape) / sample.time - 1.0 for sample in those])
            mean, p95, bias = np.abs(off).mean(), np.quantile(np.abs(off), 0.95), np.median(off)
            print(f"    {name:14} mean {mean:.1%}, p95 {p95:.1%}, bias {bias:+.1%}")


def main(folder: Path, out: Path) -> None:
    """Read FOLDER, write OUT, say what it holds and how far models are from it."""
    samples = Tables.read(folder).samples(np.random.default_rng(0))
    model, held_out = fit(samples)
    Calibration(
        MODEL, "bfloat16", DEVICE, True, samples, model, held_out, repeats=repeat_errors(samples), source=SOURCE
    ).save(out)
    print(f"{len(samples)} batches, {out.stat().st_size / 1e3:.0f} kB")
    _print_errors(samples)


if __name__ == "__main__":
    typer.run(main)
