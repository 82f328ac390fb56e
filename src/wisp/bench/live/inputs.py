"""What a comparison needs before it starts: a trace of the pair, and batch times of the target; made where missing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from wisp.bench.live.fleet import conversations
from wisp.bench.live.settings import QUESTIONS, BenchSettings, Cell
from wisp.calibration.measured import MeasuredBatchTime
from wisp.calibration.shipped import load_profile
from wisp.demo.pair import heldout_prompts
from wisp.errors import ConfigError, EngineError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.prompts import NamedPrompt, read_prompts
from wisp.formats.trace import TraceHeader, TraceRecord, TraceWriter, read_trace
from wisp.policy.batch_time import BatchTime

CALIBRATION_SECONDS = 15
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CellInputs:
    """What one cell replays."""

    header: TraceHeader
    records: Sequence[TraceRecord]
    trace: Path
    """The file that holds them."""


async def batch_times_file(settings: BenchSettings, folder: Path) -> str:
    """The given file or shipped profile, or a file that is measured now."""
    if settings.batch_times is not None:
        return settings.batch_times
    path = folder / "calibration.json"
    if not path.exists():
        seconds = str(CALIBRATION_SECONDS)
        await run_wisp(["calibrate", str(settings.target), "--out", str(path), "--seconds", seconds])
    return str(path)


def batch_time(settings: BenchSettings, calibration: str) -> BatchTime:
    """What batches are expected to last: of the timed engine what they do last, else the model fitted to the target."""
    found = load_profile(calibration)
    return MeasuredBatchTime(found.samples) if settings.engine == "timed" else found.model.predict


def trained_predictor(settings: BenchSettings) -> TrainedPredictor | None:
    """Raises FormatError."""
    return None if settings.predictor is None else TrainedPredictor.load(settings.predictor)


async def cell_inputs(settings: BenchSettings, cell: Cell, folder: Path) -> CellInputs:
    """The cell's trace. Raises FormatError and EngineError.

    A real target needs prompts that were recorded as they are asked; under the timed engine recorded ones are stretched.
    """
    if settings.engine == "timed":
        source = settings.trace or await _record(settings, None, folder / "trace.jsonl.gz")
        header, records = read_trace(source)
        if (cell.prompt_tokens, cell.context_tokens) == (None, None):
            return CellInputs(header, records, source)
        path = folder / _trace_name(cell)
        if cell.prompt_tokens is not None:
            records = stretch(records, cell.prompt_tokens)
        if cell.context_tokens is not None:
            records = behind_contexts(records, cell.context_tokens)
        _write(path, header, records)
        return CellInputs(header, records, path)
    if settings.trace is not None and (cell.prompt_tokens, cell.context_tokens) != (None, None):
        raise ConfigError(
            "a real target says nothing recorded to longer prompts: leave either the trace or the length out"
        )
    path = settings.trace or await _record(settings, cell, folder / _trace_name(cell))
    return CellInputs(*read_trace(path), path)


def _trace_name(cell: Cell) -> str:
    """Cells that differ in their devices alone share it."""
    lengths = {"prompts": cell.prompt_tokens, "contexts": cell.context_tokens}
    made = [f"-{name}-{length}" for name, length in lengths.items() if length is not None]
    return f"trace{''.join(made)}.jsonl.gz"


def stretch(records: Sequence[TraceRecord], num_tokens: int) -> list[TraceRecord]:
    """Prompts of `num_tokens`: a record's own behind those of the others, cut in front. Outputs and drafts stay."""
    prompts = [record.tokens[: record.num_prompt_tokens] for record in records]
    stretched = []
    for index, record in enumerate(records):
        others = _enough(prompts[index:] + prompts[:index], num_tokens, len)
        tokens = [token for prompt in reversed(others) for token in prompt][-num_tokens:]
        output = record.tokens[record.num_prompt_tokens :]
        stretched.append(replace(record, tokens=(*tokens, *output), num_prompt_tokens=len(tokens)))
    return stretched


def behind_contexts(records: Sequence[TraceRecord], num_tokens: int) -> list[TraceRecord]:
    """Prompts behind `num_tokens` of the other conversations' prompts; outputs and drafts stay."""
    found = []
    for own, others in _with_others(conversations(records, QUESTIONS)):
        prompts = [record.tokens[: record.num_prompt_tokens] for record in others]
        enough = _enough(prompts, num_tokens, len)
        context = [token for prompt in reversed(enough) for token in prompt][-num_tokens:]
        found += [
            replace(one, tokens=(*context, *one.tokens), num_prompt_tokens=num_tokens + one.num_prompt_tokens)
            for one in own
        ]
    return found


def join_contexts(prompts: Sequence[NamedPrompt], num_tokens: int, tokenizer: Tokenizer) -> list[NamedPrompt]:
    """Prompts behind contexts of about `num_tokens`: texts of the other conversations' prompts."""
    groups = [prompts[first : first + QUESTIONS] for first in range(0, len(prompts), QUESTIONS)]
    found = []
    for own, others in _with_others(groups):
        enough = _enough(others, num_tokens, lambda one: len(tokenizer.encode(one.text).ids))
        context = "\n\n\n".join(one.text for one in reversed(enough))
        found += [NamedPrompt(one.name, f"{context}\n\n\n{one.text}") for one in own]
    return found


def _with_others(groups: Sequence[Sequence[_T]]) -> Iterator[tuple[Sequence[_T], Sequence[_T]]]:
    """Each group with the members of all others, those of the next group first; a single one with its own."""
    for index, own in enumerate(groups):
        others = [*groups[index + 1 :], *groups[:index]] or [own]
        yield own, [one for group in others for one in group]


def join(prompts: Sequence[NamedPrompt], num_tokens: int, tokenizer: Tokenizer) -> list[NamedPrompt]:
    """Prompts of about `num_tokens`: each behind as many of the others as it takes."""
    joined = []
    for index, prompt in enumerate(prompts):
        turned = [*prompts[index:], *prompts[:index]]
        enough = _enough(turned, num_tokens, lambda one: len(tokenizer.encode(one.text).ids))
        joined.append(NamedPrompt(prompt.name, "\n\n\n".join(one.text for one in reversed(enough))))
    return joined


def _enough(items: Sequence[_T], num_tokens: int, length: object) -> list[_T]:
    """The first of them, again and again, that have `num_tokens` together."""
    assert callable(length)
    taken: list[_T] = []
    total = 0
    while total < num_tokens:
        item = items[len(taken) % len(items)]
        taken.append(item)
        total += max(int(length(item)), 1)
    return taken


async def _record(settings: BenchSettings, cell: Cell | None, path: Path) -> Path:
    """Have `wisp trace` record what is not recorded yet; without a cell, prompts as they are."""
    prompts = _prompts(settings)[: settings.num_prompts]
    tokenizer = Tokenizer.from_file(str(settings.target / "tokenizer.json"))
    if cell is not None and cell.prompt_tokens is not None:
        prompts = join(prompts, cell.prompt_tokens, tokenizer)
    if cell is not None and cell.context_tokens is not None:
        prompts = join_contexts(prompts, cell.context_tokens, tokenizer)
    listed = path.with_name(f"prompts-{path.name.partition('.')[0]}.jsonl")
    listed.write_text("".join(json.dumps({"name": one.name, "prompt": one.text}) + "\n" for one in prompts))
    await run_wisp(
        [
            *("trace", str(listed), str(path), "--target", str(settings.target), "--draft", str(settings.draft)),
            *("--tokens", str(settings.output_tokens), "--temperature", str(settings.temperature)),
            *("--seed", str(settings.seed)),
        ]
    )
    return path


def _prompts(settings: BenchSettings) -> list[NamedPrompt]:
    if settings.prompts is not None:
        return read_prompts(settings.prompts)
    return [NamedPrompt(one.file, one.text) for one in heldout_prompts()]


def _write(path: Path, header: TraceHeader, records: Sequence[TraceRecord]) -> None:
    path.unlink(missing_ok=True)
    writer = TraceWriter(path, header)
    for record in records:
        writer.append(record)


async def run_wisp(arguments: Sequence[str]) -> None:
    """Run a command of WISP's to its end, quietly. Raises EngineError with the last of what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wisp", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        last = "\n".join(output.decode(errors="replace").splitlines()[-15:])
        raise EngineError(f"wisp {arguments[0]} ended with status {process.returncode}:\n{last}")
