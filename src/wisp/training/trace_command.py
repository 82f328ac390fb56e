"""`wisp trace`: loads a pair of models, records the prompts of a file, says what came of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tokenizers import Tokenizer

from wisp.config import ModelConfig
from wisp.engines.drafter import TransformersDrafter
from wisp.engines.fingerprint import weights_fingerprint
from wisp.engines.packed.loading import LoadedModel, LoadOptions, load
from wisp.engines.target import TransformersTarget
from wisp.errors import ConfigError, VocabularyMismatch
from wisp.formats.prompts import read_prompts
from wisp.formats.trace import PairIdentity, TraceHeader, TraceRecord, TraceWriter
from wisp.training.recording import EncodedPrompt, Recorder

_GROUP = 8
"""Prompts that the target decodes together."""


@dataclass(frozen=True, slots=True)
class TraceConfig:
    """What `wisp trace` records."""

    prompts: Path
    output: Path
    target: ModelConfig
    draft: ModelConfig
    rule: str = "coupled"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 64
    chain_length: int = 12
    batch: int = 64
    limit: int | None = None
    """Most prompts to use; None: all."""

    def __post_init__(self) -> None:
        if self.rule not in ("coupled", "rejection"):
            raise ConfigError(f"rule must be coupled or rejection, not {self.rule!r}")
        if self.temperature < 0.0 or not 0.0 < self.top_p <= 1.0:
            raise ConfigError("temperature must not be negative, and top_p lies above 0 and at most at 1")
        if min(self.max_tokens, self.chain_length, self.batch) < 1:
            raise ConfigError("tokens, chain and batch must be at least 1")


def run_trace(config: TraceConfig, *, json_output: bool) -> int:
    """Record what is missing in the output file; returns the exit status."""
    prompts = read_prompts(config.prompts)[: config.limit]
    target, draft = (_load(model) for model in (config.target, config.draft))
    header = _header(config, target, draft)
    writer = TraceWriter(config.output, header)
    tokenizer = Tokenizer.from_str(target.tokenizer_json.decode())
    encoded = [EncodedPrompt(i, p.name, tuple(tokenizer.encode(p.text).ids)) for i, p in enumerate(prompts)]
    longest = min(target.context_length, draft.context_length) - config.max_tokens
    fitting = [prompt for prompt in encoded if 0 < len(prompt.tokens) <= longest]
    _record(Recorder(TransformersTarget(target), TransformersDrafter(draft), header, config.batch), writer, fitting)
    summary = {"skipped_prompts": len(encoded) - len(fitting), **summarise(writer.records)}
    _show(summary, config.output, as_json=json_output)
    return 0


def summarise(records: Sequence[TraceRecord]) -> dict[str, float]:
    """What a trace holds."""
    chains = [chain for record in records for chain in record.chains]
    judged = sum(chain.num_judged for chain in chains)
    accepted = sum(chain.num_accepted for chain in chains)
    return {
        "prompts": len(records),
        "positions": len(chains),
        "labels": judged,
        "accepted_of_labels": accepted / max(judged, 1),
        "accepted_per_chain": accepted / max(len(chains), 1),
        "draft_token_ms": _median_ms([record.draft_token_s for record in records]),
        "target_token_ms": _median_ms([record.target_token_s for record in records]),
    }


def _median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.median(seconds)) if seconds else 0.0


def _load(model: ModelConfig) -> LoadedModel:
    return load(model.model, LoadOptions.of(model))


def _header(config: TraceConfig, target: LoadedModel, draft: LoadedModel) -> TraceHeader:
    vocabularies = [TransformersTarget(target).card.vocabulary, TransformersDrafter(draft).vocabulary]
    if vocabularies[0] != vocabularies[1]:
        raise VocabularyMismatch(f"{draft.model_id} does not share the vocabulary of {target.model_id}")
    weights = [weights_fingerprint(model.packed.model) for model in (target, draft)]
    return TraceHeader(
        pair=PairIdentity(target.model_id, weights[0], draft.model_id, weights[1], str(vocabularies[0])),
        rule="greedy" if config.temperature == 0.0 else config.rule,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        max_tokens=config.max_tokens,
        chain_length=config.chain_length,
    )


def _record(recorder: Recorder, writer: TraceWriter, prompts: Sequence[EncodedPrompt]) -> None:
    """Record the prompts that the file does not hold yet."""
    done = {record.prompt for record in writer.records}
    missing = [prompt for prompt in prompts if prompt.index not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("prompts", total=len(prompts), completed=len(prompts) - len(missing))
        for first in range(0, len(missing), _GROUP):
            for record in recorder.record(missing[first : first + _GROUP]):
                writer.append(record)
                progress.advance(bar)


def _show(summary: dict[str, float], output: Path, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"event": "trace", "file": str(output), **summary}) + "\n")
        return
    table = Table(title=str(output), show_header=False)
    for name, value in summary.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
