"""Drafts of a real pair of models instead of drawn ones: the chains of `wisp trace` files, replayed under any stop rule.

A session follows one recorded output, drawn with its own random stream: a draft that begins at output position j is
chain j, with the statistics that the drafter gave and the labels that the target gave. Sessions that are longer than
their record go on from its beginning. Its last `chain_length` positions are left out: their chains are cut off by the
end of the output. No draft is longer than a chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wisp.errors import FormatError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.trace import Chain, TraceHeader, TraceRecord, read_traces
from wisp.types import DraftStats


@dataclass(frozen=True, slots=True)
class RecordedFate:
    """One recorded output, again and again; see Fate."""

    chains: Sequence[Chain]

    def drafted(self, start: int, index: int) -> tuple[bool, DraftStats] | None:
        chain = self.chains[start % len(self.chains)]
        return (index < chain.num_accepted, chain.stats[index]) if index < len(chain.stats) else None

    def num_right(self, start: int, num_tokens: int) -> int:
        return min(self.chains[start % len(self.chains)].num_accepted, num_tokens)


class RecordedAcceptance:
    """Draws recorded outputs, each as often as the others; see Acceptance."""

    def __init__(self, header: TraceHeader, records: Iterable[TraceRecord]) -> None:
        """Raises FormatError where no output is long enough."""
        self.header = header
        complete = [record.chains[: max(len(record.chains) - header.chain_length, 0)] for record in records]
        self.fates = [RecordedFate(chains) for chains in complete if chains]
        if not self.fates:
            raise FormatError(
                f"no output of the trace is longer than its chains of {header.chain_length} tokens: record longer ones "
                "(`wisp trace --tokens`)"
            )

    @classmethod
    def read(cls, paths: Sequence[Path]) -> RecordedAcceptance:
        """From files of `wisp trace`. Raises FormatError."""
        return cls(*read_traces(paths))

    def require(self, trained: TrainedPredictor, path: Path) -> None:
        """Raise FormatError unless the predictor was trained for this pair of models."""
        ours, theirs = self.header.pair, trained.pair
        if ours != theirs:
            raise FormatError(
                f"{path} was trained for the pair {theirs.target} and {theirs.draft}, the trace is of {ours.target} and "
                f"{ours.draft}, or their weights differ: train one with `wisp train`"
            )

    def fate(self, num_positions: int, rng: np.random.Generator) -> RecordedFate:
        return self.fates[int(rng.integers(len(self.fates)))]
