"""Labelled examples out of traces, split so that no file or prompt is on two sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wisp.errors import FormatError
from wisp.formats.trace import TraceRecord
from wisp.policy.predictor import UNINFORMED_ACCEPTANCE, FloatArray, feature_row

_TYPICAL_DRAFT = 4
_MEMORY = 0.975
"""Per position: what SessionSettings.acceptance_memory is per round, at two tokens a round."""


@dataclass(frozen=True, slots=True)
class Split:
    """Records to fit on, to stop early, calibrate and tune on, and to report on."""

    train: list[TraceRecord]
    tune: list[TraceRecord]
    test: list[TraceRecord]


def split(records: Sequence[TraceRecord], seed: int) -> Split:
    """Three to one to one, by name: prompts of one name (one file, say) stay together. Raises FormatError."""
    names = sorted({record.name for record in records})
    if len(names) < 5:
        raise FormatError(f"training needs prompts of at least 5 names, the traces have {len(names)}")
    order = np.random.default_rng(seed).permutation(len(names))
    side = {names[name]: rank * 5 // len(names) for rank, name in enumerate(order)}
    return Split(
        train=[record for record in records if side[record.name] < 3],
        tune=[record for record in records if side[record.name] == 3],
        test=[record for record in records if side[record.name] == 4],
    )


def examples(records: Sequence[TraceRecord]) -> tuple[FloatArray, FloatArray]:
    """All labelled tokens: values of FEATURES [n, 8], and whether each was accepted [n]."""
    rows, labels = [], []
    for record in records:
        for row, label in _of_record(record):
            rows.append(row)
            labels.append(label)
    return np.array(rows), np.array(labels, dtype=np.float64)


def _of_record(record: TraceRecord) -> Iterator[tuple[Sequence[float], bool]]:
    """The session's share of accepted tokens is what a device would have seen with drafts of a typical length.

    Chains overlap: what became of one is known only once the output has passed all of it.
    """
    judged, accepted = 2.0, 2.0 * UNINFORMED_ACCEPTANCE
    for start, chain in enumerate(record.chains):
        for position in range(chain.num_judged):
            yield feature_row(chain.stats[position], position, accepted / judged), position < chain.num_accepted
        if start >= _TYPICAL_DRAFT:
            passed = record.chains[start - _TYPICAL_DRAFT]
            judged = _MEMORY * judged + 0.5 * min(passed.num_judged, _TYPICAL_DRAFT)
            accepted = _MEMORY * accepted + 0.5 * min(passed.num_accepted, _TYPICAL_DRAFT)
