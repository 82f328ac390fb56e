"""Traces: what a draft model would have proposed at every position of a target's own outputs, and what was right.

A file is JSON lines, gzipped where its name ends in .gz: a header, then one record per prompt (docs/traces.md).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import IO, Any

from wisp.errors import FormatError
from wisp.types import DraftStats, TokenId

FORMAT = "wisp-trace"
VERSION = 1
STATISTICS = tuple(field.name for field in fields(DraftStats))
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class PairIdentity:
    """Which target and drafter a file belongs to."""

    target: str
    """Name of the target model."""
    target_weights: str
    draft: str
    draft_weights: str
    """Fingerprints of the weights."""
    vocabulary: str
    """Fingerprint of the vocabulary that both share."""


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """How a trace was made; two files with equal headers can be added up."""

    pair: PairIdentity
    rule: str
    """greedy, coupled or rejection."""
    temperature: float
    top_p: float
    seed: int
    """Prompt i is generated with seed + i."""
    max_tokens: int
    """Of each output."""
    chain_length: int

    @property
    def condition(self) -> str:
        """How tokens were chosen, in words."""
        if self.rule == "greedy":
            return self.rule
        nucleus = "" if self.top_p == 1.0 else f", top-p {self.top_p:g}"
        return f"{self.rule}, temperature {self.temperature:g}{nucleus}"


@dataclass(frozen=True, slots=True)
class Chain:
    """The draft that starts at one position of an output, and what verification would say about it."""

    tokens: tuple[TokenId, ...]
    stats: tuple[DraftStats, ...]
    """One per token."""
    num_accepted: int
    num_judged: int
    """Tokens with a label: the accepted ones and the first rejected one. All later ones are censored, not negative."""

    @property
    def rejected(self) -> bool:
        """Whether the label after the accepted tokens is known to be a rejection."""
        return self.num_judged > self.num_accepted


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One prompt, the target's own output for it, and the chain at every position of that output."""

    prompt: int
    """Number of the prompt in its file."""
    name: str
    tokens: tuple[TokenId, ...]
    """Of prompt and output."""
    num_prompt_tokens: int
    chains: tuple[Chain, ...]
    """Chain j is drafted after j tokens of the output."""
    target_token_s: float
    """Seconds per token and session of the target's decoding, in batches."""
    draft_token_s: float
    """Seconds per drafted token of this session alone."""


class TraceWriter:
    """Appends records to a trace file, one complete line each."""

    def __init__(self, path: Path, header: TraceHeader) -> None:
        """Go on with the file if it is there: a line that was cut off is dropped.

        Raises FormatError for a file that is not a trace, or one with another header.
        """
        self.records: list[TraceRecord] = []
        if path.exists():
            known, self.records = read_trace(path, complete=False)
            if known != header:
                raise FormatError(f"{path} is a trace with other settings: {_difference(known, header)}")
        self._path = path
        self._rewrite(header)

    def append(self, record: TraceRecord) -> None:
        """Add a record; it is on disk afterwards."""
        with _open(self._path, "at") as file:
            file.write(_line(_record_to_json(record)))
        self.records.append(record)

    def _rewrite(self, header: TraceHeader) -> None:
        temporary = self._path.with_name(f"part-{self._path.name}")
        with _open(temporary, "wt") as file:
            file.write(_line({"format": FORMAT, "version": VERSION, "statistics": STATISTICS, **asdict(header)}))
            file.writelines(_line(_record_to_json(record)) for record in self.records)
        temporary.replace(self._path)


def read_trace(path: Path, *, complete: bool = True) -> tuple[TraceHeader, list[TraceRecord]]:
    """Header and records of a file. Raises FormatError.

    Without `complete`, what an interrupted run left at the end is ignored.
    """
    lines = _lines(path, complete=complete)
    try:
        header = _header_of_json(json.loads(lines[0]), path)
    except (IndexError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is not a trace: {error!r}") from error
    records = []
    for number, line in enumerate(lines[1:], 2):
        try:
            records.append(_record_of_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            if not complete and number == len(lines):
                break
            raise FormatError(f"{path}, line {number}: not a record of a trace: {error!r}") from error
    return header, records


def read_traces(paths: Iterable[Path]) -> tuple[TraceHeader, list[TraceRecord]]:
    """Several files as one. Raises FormatError where they were not made in the same way."""
    header, records = None, []
    for path in paths:
        this, found = read_trace(path)
        if header is not None and this != header:
            raise FormatError(f"{path} was made with other settings: {_difference(header, this)}")
        header = this
        records += found
    if header is None:
        raise FormatError("no trace was named")
    return header, records


def read_trace_sets(paths: Iterable[Path]) -> list[tuple[TraceHeader, list[TraceRecord]]]:
    """Files of one pair of models, those with equal headers added up. Raises FormatError where pairs differ."""
    sets: dict[TraceHeader, list[TraceRecord]] = {}
    for path in paths:
        header, records = read_trace(path)
        first = next(iter(sets), header)
        if header.pair != first.pair:
            raise FormatError(f"{path} was made with other models: {_difference(first, header)}")
        sets.setdefault(header, []).extend(records)
    if not sets:
        raise FormatError("no trace was named")
    return list(sets.items())


def _open(path: Path, mode: str) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding="utf-8")  # type: ignore[return-value]
    return path.open(mode, encoding="utf-8")


def _lines(path: Path, *, complete: bool) -> list[str]:
    lines: list[str] = []
    try:
        with _open(path, "rt") as file:
            for line in file:
                lines.append(line)  # noqa: PERF402 - what was read before an error counts
    except EOFError as error:
        if complete or not lines:
            raise FormatError(f"cannot read the trace {path}: {error}") from error
    except (OSError, ValueError, zlib.error) as error:
        raise FormatError(f"cannot read the trace {path}: {error}") from error
    return lines


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


def _record_to_json(record: TraceRecord) -> dict[str, Any]:
    chains = [
        {
            "tokens": chain.tokens,
            "stats": [[_rounded(value) for value in astuple(stats)] for stats in chain.stats],
            "accepted": chain.num_accepted,
            "judged": chain.num_judged,
        }
        for chain in record.chains
    ]
    plain = {name: getattr(record, name) for name in TraceRecord.__slots__ if name != "chains"}
    return {**plain, "chains": chains}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _record_of_json(content: dict[str, Any]) -> TraceRecord:
    given = {name: content[name] for name in TraceRecord.__slots__}
    for name in ("prompt", "num_prompt_tokens"):
        given[name] = _whole(content[name])
    for name in ("target_token_s", "draft_token_s"):
        given[name] = _finite(content[name])
    given["name"] = str(content["name"])
    given["tokens"] = tuple(map(_whole, content["tokens"]))
    given["chains"] = tuple(map(_chain_of_json, content["chains"]))
    record = TraceRecord(**given)
    num_output_tokens = len(record.tokens) - record.num_prompt_tokens
    if num_output_tokens < 0 or len(record.chains) not in (0, num_output_tokens):
        raise ValueError("there should be one chain per token of the output, or none at all")
    return record


def _chain_of_json(content: dict[str, Any]) -> Chain:
    stats = tuple(_stats_of_json(row) for row in content["stats"])
    tokens, accepted, judged = tuple(map(_whole, content["tokens"])), content["accepted"], content["judged"]
    chain = Chain(tokens, stats, _whole(accepted), _whole(judged))
    if not (0 <= chain.num_accepted <= chain.num_judged <= len(chain.tokens) == len(stats)):
        raise ValueError("accepted <= judged <= tokens = stats does not hold")
    return chain


def _stats_of_json(values: Sequence[Any]) -> DraftStats:
    *others, perturbed_margin = values
    if len(values) != len(STATISTICS):
        raise ValueError(f"a token should have {len(STATISTICS)} statistics")
    confidence, entropy, margin, logit_std, token_probability = map(_finite, others)
    lead = None if perturbed_margin is None else _finite(perturbed_margin)
    return DraftStats(confidence, entropy, margin, logit_std, token_probability, lead)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"{value!r} should be a number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} should be a number of 0 or more, without a fraction")
    return value


def _header_of_json(content: dict[str, Any], path: Path) -> TraceHeader:
    if content.get("format") != FORMAT:
        raise FormatError(f"{path} is not a {FORMAT}: make one with `wisp trace`")
    if content.get("version") != VERSION:
        raise FormatError(
            f"{path} is a {FORMAT} of version {content.get('version')!r}, this WISP reads version {VERSION}: record it anew "
            "with `wisp trace`"
        )
    if tuple(content["statistics"]) != STATISTICS:
        raise FormatError(f"{path} lists other statistics than {', '.join(STATISTICS)}")
    given = {name: content[name] for name in TraceHeader.__slots__}
    return TraceHeader(**{**given, "pair": PairIdentity(**given["pair"])})


def _difference(a: TraceHeader, b: TraceHeader) -> str:
    left, right = ({**asdict(header), **asdict(header.pair)} for header in (a, b))
    names: Sequence[str] = [name for name in left if name != "pair" and left[name] != right[name]]
    return "; ".join(f"{name} {left[name]!r} there, {right[name]!r} here" for name in names)
