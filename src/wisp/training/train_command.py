"""`wisp train`: fits the predictor to traces, measures it, replays every stop rule, writes the file and a plot."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from wisp.errors import ConfigError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.trace import TraceHeader, TraceRecord, read_trace_sets
from wisp.policy.predictor import FEATURES, FloatArray, MlpPredictor
from wisp.training.comparison import (
    CELLS,
    MAX_TOKENS,
    FixedRow,
    Row,
    best_threshold,
    candidates,
    compare,
    fixed_lengths,
)
from wisp.training.examples import Split, examples, split
from wisp.training.fitting import Examples, FitSettings, fit
from wisp.training.measures import Bin, alarms, auc, calibration_error, reliability
from wisp.training.plot import svg

STATISTICS = FEATURES[:4]
"""The paper's."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What `wisp train` does."""

    traces: tuple[Path, ...]
    output: Path
    plot: Path | None = None
    hidden: tuple[int, ...] = (16, 16)
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(width >= 1 for width in self.hidden):
            raise ConfigError("hidden layers need at least one unit each")


@dataclass(frozen=True, slots=True)
class ConditionReport:
    """What was measured on the test prompts of the traces of one condition."""

    condition: str
    num_labels: int
    accepted: float
    """Share of the labelled tokens."""
    auc: dict[str, float]
    """Of the predictor, of simpler ones, and of each statistic alone."""
    calibration_error: float
    reliability: list[Bin]
    false_alarms: float
    detections: float
    """At the threshold of the report."""
    fixed: list[FixedRow]
    rules: list[Row]


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a training."""

    num_prompts: tuple[int, int, int]
    """To fit on, to tune on, to report on; of all conditions."""
    num_labels: tuple[int, int, int]
    auc_train: float
    """On the prompts that were fitted to: how far it exceeds the others is what was learned by heart."""
    auc_test: float
    threshold: float
    conditions: list[ConditionReport]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """The predictor, what it was fitted to, and simpler ones to compare it with."""

    parts: Split
    sides: tuple[Examples, Examples, Examples]
    predictor: MlpPredictor
    others: dict[str, MlpPredictor]
    threshold: float


def run_train(config: TrainConfig, *, json_output: bool) -> int:
    """Fit, report and write; returns the exit status. Raises FormatError for traces that cannot be used."""
    sets = read_trace_sets(config.traces)
    fitted = _fit([record for _, records in sets for record in records], config)
    report = _report(fitted, sets)
    summary = asdict(report)
    conditions = tuple(dict.fromkeys(header.condition for header, _ in sets))
    pair = sets[0][0].pair
    trained = TrainedPredictor(pair, conditions, fitted.predictor, fitted.threshold, _kept(report))
    trained.save(config.output)
    if config.plot is not None:
        config.plot.write_text(_plot(report), encoding="utf-8")
    if json_output:
        sys.stdout.write(json.dumps({"event": "train", "file": str(config.output), **summary}) + "\n")
    else:
        _show(report, Console())
    return 0


def _fit(records: Sequence[TraceRecord], config: TrainConfig) -> _Fitted:
    parts = split(records, config.seed)
    train, tune, test = (examples(side) for side in (parts.train, parts.tune, parts.test))
    network, regression = (FitSettings(hidden, seed=config.seed) for hidden in (config.hidden, ()))
    predictor = fit(FEATURES, train, tune, network)
    others = {
        "MLP, the four statistics": fit(STATISTICS, train, tune, network),
        "logistic regression, the four": fit(STATISTICS, train, tune, regression),
        "logistic regression, all": fit(FEATURES, train, tune, regression),
    }
    return _Fitted(parts, (train, tune, test), predictor, others, best_threshold(parts.tune, predictor))


def _report(fitted: _Fitted, sets: Sequence[tuple[TraceHeader, Sequence[TraceRecord]]]) -> Report:
    parts, (train, tune, test), predictor = fitted.parts, fitted.sides, fitted.predictor
    with Progress(console=Console(stderr=True)) as progress:
        total = len(sets) * len(CELLS) * len(candidates(predictor, fitted.threshold))
        bar = progress.add_task("replaying stop rules", total=total)
        conditions = [
            _condition(header.condition, set(map(id, records)), fitted, lambda: progress.advance(bar))
            for header, records in sets
        ]
    return Report(
        num_prompts=(len(parts.train), len(parts.tune), len(parts.test)),
        num_labels=(len(train[1]), len(tune[1]), len(test[1])),
        auc_train=auc(predictor.scores(train[0][:, predictor.columns]), train[1]),
        auc_test=auc(predictor.scores(test[0][:, predictor.columns]), test[1]),
        threshold=fitted.threshold,
        conditions=conditions,
    )


def _condition(name: str, of_set: set[int], fitted: _Fitted, advance: Callable[[], None]) -> ConditionReport:
    """Measure on the records whose identities are in `of_set`."""
    tune, test = ([one for one in side if id(one) in of_set] for side in (fitted.parts.tune, fitted.parts.test))
    rows, labels = examples(test)
    p = fitted.predictor.probabilities(rows[:, fitted.predictor.columns])
    bins = reliability(p, labels)
    false_alarms, detections = alarms(p, labels, fitted.threshold)
    return ConditionReport(
        condition=name,
        num_labels=len(labels),
        accepted=float(labels.mean()),
        auc={"predictor": auc(p, labels), **_other_aucs(fitted.others, rows, labels)},
        calibration_error=calibration_error(bins),
        reliability=bins,
        false_alarms=false_alarms,
        detections=detections,
        fixed=fixed_lengths(test),
        rules=compare(tune, test, fitted.predictor, fitted.threshold, advance=advance),
    )


def _other_aucs(others: Mapping[str, MlpPredictor], rows: FloatArray, labels: FloatArray) -> dict[str, float]:
    found = {name: auc(other.scores(rows[:, other.columns]), labels) for name, other in others.items()}
    for index, name in enumerate(FEATURES):
        alone = auc(rows[:, index], labels)
        found[f"{name} alone"] = max(alone, 1.0 - alone)
    return found


def _kept(report: Report) -> dict[str, Any]:
    """What of the report goes into the predictor's file."""
    return {
        "num_prompts": report.num_prompts,
        "num_labels": report.num_labels,
        "conditions": [
            {
                "condition": one.condition,
                "auc": one.auc["predictor"],
                "calibration_error": one.calibration_error,
                "false_alarms": one.false_alarms,
                "detections": one.detections,
            }
            for one in report.conditions
        ],
    }


def _plot(report: Report) -> str:
    """Every condition's calibration, and its rules' speeds."""
    return svg([(one.condition, one.reliability, one.rules) for one in report.conditions])


def _show(report: Report, console: Console) -> None:
    console.print(
        f"prompts to fit, tune and report on: {report.num_prompts}; AUC on those fitted to {report.auc_train:.3f}, on the "
        f"test prompts {report.auc_test:.3f}; threshold {report.threshold}"
    )
    for one in report.conditions:
        _show_condition(one, console)


def _show_condition(one: ConditionReport, console: Console) -> None:
    console.rule(f"{one.condition}: {one.num_labels} labels, {one.accepted:.0%} accepted")
    ranks = Table("AUC on the test prompts", "")
    for name, value in one.auc.items():
        ranks.add_row(name, f"{value:.3f}")
    bins = Table("predicted", "accepted", "tokens", title=f"calibration error {one.calibration_error:.3f}")
    for each in one.reliability:
        bins.add_row(f"{each.predicted:.2f}", f"{each.accepted:.2f}", str(each.num_tokens))
    console.print(ranks, bins)
    console.print(f"below the threshold: {one.false_alarms:.0%} of the accepted, {one.detections:.0%} of the rejected")
    console.print(_fixed_table(one.fixed), *(_rules_table(one.rules, cell.name) for cell in CELLS))


def _fixed_table(rows: Sequence[FixedRow]) -> Table:
    table = Table("tokens/s", *(str(k) for k in range(1, MAX_TOKENS + 1)), title="fixed lengths K")
    for cell in CELLS:
        table.add_row(cell.name, *(f"{row.tokens_per_s:.1f}" for row in rows if row.cell == cell.name))
    shares = [row.accepted_share for row in rows if row.cell == CELLS[0].name]
    table.add_row("accepted", *(f"{share:.0%}" for share in shares))
    return table


def _rules_table(rows: Sequence[Row], cell: str) -> Table:
    columns = ("rule", "settings", "tokens/s", "of best fixed K", "accepted", "drafted/token")
    table = Table(*columns, title=f"modelled, alone on the server: {cell}")
    for row in rows:
        if row.cell == cell:
            ratio = f"{row.of_best_fixed:.2f} ({row.low:.2f}-{row.high:.2f})"
            share, drafted = f"{row.accepted_share:.0%}", f"{row.drafted_per_token:.2f}"
            table.add_row(row.rule, row.settings, f"{row.tokens_per_s:.1f}", ratio, share, drafted)
    return table
