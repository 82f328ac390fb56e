"""`wisp train`: fits the predictor to traces, measures it, replays every stop rule, writes the file and a plot."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from wisp.errors import ConfigError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.trace import read_traces
from wisp.policy.predictor import FEATURES, MlpPredictor
from wisp.training.comparison import CELLS, Row, best_threshold, candidates, compare, fixed_lengths
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
class Report:
    """What was measured on the test prompts."""

    num_prompts: tuple[int, int, int]
    """To fit on, to tune on, to report on."""
    num_labels: tuple[int, int, int]
    auc: dict[str, float]
    """Of the predictor, of simpler ones, and of each statistic alone."""
    auc_train: float
    calibration_error: float
    reliability: list[Bin]
    threshold: float
    false_alarms: float
    detections: float
    fixed: list[dict[str, float]]
    """Every K in the middle cell."""
    rules: list[Row]


def run_train(config: TrainConfig, *, json_output: bool) -> int:
    """Fit, report and write; returns the exit status. Raises FormatError for traces that cannot be used."""
    header, records = read_traces(config.traces)
    parts = split(records, config.seed)
    sides = [examples(side) for side in (parts.train, parts.tune, parts.test)]
    predictor = fit(FEATURES, sides[0], sides[1], FitSettings(config.hidden, seed=config.seed))
    threshold = best_threshold(parts.tune, predictor, CELLS[1])
    report = _report(parts, sides, predictor, threshold, config)
    summary = asdict(report)
    trained = TrainedPredictor(header.pair, header.rule, header.temperature, predictor, threshold, _kept(summary))
    trained.save(config.output)
    if config.plot is not None:
        config.plot.write_text(svg(report.reliability, report.rules), encoding="utf-8")
    if json_output:
        sys.stdout.write(json.dumps({"event": "train", "file": str(config.output), **summary}) + "\n")
    else:
        _show(report, Console())
    return 0


def _report(
    parts: Split, sides: Sequence[Examples], predictor: MlpPredictor, threshold: float, config: TrainConfig
) -> Report:
    train, _, (rows, labels) = sides
    p = predictor.probabilities(rows[:, predictor.columns])
    bins = reliability(p, labels)
    false_alarms, detections = alarms(p, labels, threshold)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("replaying stop rules", total=len(CELLS) * len(candidates(predictor)))
        table = compare(parts.tune, parts.test, predictor, advance=lambda: progress.advance(bar))
    return Report(
        num_prompts=(len(parts.train), len(parts.tune), len(parts.test)),
        num_labels=(len(sides[0][1]), len(sides[1][1]), len(sides[2][1])),
        auc={"predictor": auc(p, labels), **_other_aucs(sides, config)},
        auc_train=auc(predictor.probabilities(train[0][:, predictor.columns]), train[1]),
        calibration_error=calibration_error(bins),
        reliability=bins,
        threshold=threshold,
        false_alarms=false_alarms,
        detections=detections,
        fixed=fixed_lengths(parts.test, CELLS[1]),
        rules=table,
    )


def _other_aucs(sides: Sequence[Examples], config: TrainConfig) -> dict[str, float]:
    rows, labels = sides[2]
    others = {
        "MLP, the four statistics": fit(STATISTICS, sides[0], sides[1], FitSettings(config.hidden, seed=config.seed)),
        "logistic regression, the four": fit(STATISTICS, sides[0], sides[1], FitSettings((), seed=config.seed)),
        "logistic regression, all": fit(FEATURES, sides[0], sides[1], FitSettings((), seed=config.seed)),
    }
    found = {name: auc(other.scores(rows[:, other.columns]), labels) for name, other in others.items()}
    for index, name in enumerate(FEATURES):
        alone = auc(rows[:, index], labels)
        found[f"{name} alone"] = max(alone, 1.0 - alone)
    return found


def _kept(summary: dict[str, Any]) -> dict[str, Any]:
    """What of the report goes into the predictor's file."""
    names = ("num_prompts", "num_labels", "auc_train", "calibration_error", "false_alarms", "detections")
    return {"auc": summary["auc"]["predictor"], **{name: summary[name] for name in names}}


def _show(report: Report, console: Console) -> None:
    ranks = Table("AUC on the test prompts", "")
    for name, value in report.auc.items():
        ranks.add_row(name, f"{value:.3f}")
    console.print(ranks)
    table = Table("predicted", "accepted", "tokens", title=f"calibration error {report.calibration_error:.3f}")
    for one in report.reliability:
        table.add_row(f"{one.predicted:.2f}", f"{one.accepted:.2f}", str(one.num_tokens))
    console.print(table)
    console.print(
        f"threshold {report.threshold}: {report.false_alarms:.0%} false alarms, {report.detections:.0%} detections; "
        f"AUC on the training prompts {report.auc_train:.3f}; prompts {report.num_prompts}"
    )
    console.print(_fixed_table(report), *(_rules_table(report, cell.name) for cell in CELLS))


def _fixed_table(report: Report) -> Table:
    table = Table("K", "accepted share", "tokens/s", title=f"fixed lengths: {CELLS[1].name}")
    for one in report.fixed:
        table.add_row(f"{one['k']:.0f}", f"{one['accepted_share']:.0%}", f"{one['tokens_per_s']:.1f}")
    return table


def _rules_table(report: Report, cell: str) -> Table:
    columns = ("rule", "settings", "tokens/s", "of best fixed K", "accepted", "drafted/token")
    table = Table(*columns, title=f"modelled, alone on the server: {cell}")
    for row in report.rules:
        if row.cell == cell:
            ratio = f"{row.of_best_fixed:.2f} ({row.low:.2f}-{row.high:.2f})"
            share, drafted = f"{row.accepted_share:.0%}", f"{row.drafted_per_token:.2f}"
            table.add_row(row.rule, row.settings, f"{row.tokens_per_s:.1f}", ratio, share, drafted)
    return table
