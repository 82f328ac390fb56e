"""The report as one HTML file: tables and charts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from wisp.bench.live.charts import COLOURS, Axis, legend, line_chart
from wisp.bench.live.measures import Measures
from wisp.bench.live.settings import BenchSettings
from wisp.bench.live.simulated import COMPARED, SideBySide, compared_rows
from wisp.bench.live.summary import CellSummary, SystemSummary
from wisp.bench.live.table import CAPACITY_ROWS, LOAD_ROWS, Row, label
from wisp.policy.systems import SYSTEMS

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em;border-bottom:1px solid #ccc}
table{border-collapse:collapse;margin:1em 0;font-size:13px}td,th{padding:.25em .7em;text-align:right}
td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f5f5f5}thead th{border-bottom:2px solid #999}
svg{width:100%;max-width:480px;font:11px sans-serif}.charts{display:flex;flex-wrap:wrap;gap:1em}
.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.3em 1.2em}
.legend span{display:inline-block;width:1em;height:1em;margin-right:.4em;vertical-align:-.15em}
.note{background:#fff6dd;padding:.5em .8em;border-left:4px solid #d9a400}.scroll{overflow-x:auto}
"""


def html_report(
    settings: BenchSettings,
    cells: Sequence[CellSummary],
    machine: Mapping[str, Any],
    simulated: Mapping[str, Sequence[SideBySide]] | None = None,
) -> str:
    """The whole page; `simulated` holds the systems of each cell, by its name, as they were simulated."""
    colours = {system: COLOURS[index % len(COLOURS)] for index, system in enumerate(settings.systems)}
    body = [
        "<h1>WISP: systems compared</h1>",
        f"<p><strong>{escape(label(settings))}</strong></p>",
        f"<p>{escape(_facts(settings, machine))}</p>",
        *(_section(settings, cell, colours) + _simulated(cell, simulated or {}) for cell in cells),
        "<h2>Systems</h2><ul>",
        *(f"<li><strong>{escape(name)}</strong>: {escape(SYSTEMS[name].caption)}</li>" for name in settings.systems),
        "</ul>",
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>WISP: systems compared</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _facts(settings: BenchSettings, machine: Mapping[str, Any]) -> str:
    timing = settings.timing
    slos = ", ".join(f"{one.name}: {one.tokens_per_s:g}/s, first in {one.first_token_s:g} s" for one in settings.slos)
    of_machine = ", ".join(f"{name} {value}" for name, value in machine.items())
    return (
        f"SLO classes in equal shares ({slos}). {timing.duration:g} s judged after {timing.warmup:g} s of warm-up, at most "
        f"{timing.drain:g} s to drain; seeds {settings.seed} to {settings.seed + settings.num_seeds - 1}. "
        f"Capacity at {settings.search.level:.0%} attained. Machine: {of_machine}."
    )


def _section(settings: BenchSettings, cell: CellSummary, colours: Mapping[str, str]) -> str:
    fleet = cell.cell.fleet
    drafts = f"{fleet.draft_speed.low:g} to {fleet.draft_speed.high:g} tokens/s"
    rtt = f"{fleet.rtt.low * 1e3:g} to {fleet.rtt.high * 1e3:g} ms"
    prompts = "as recorded" if cell.cell.prompt_tokens is None else f"about {cell.cell.prompt_tokens} tokens"
    if cell.cell.context_tokens is not None:
        prompts += f", {cell.cell.questions} of them behind each context of about {cell.cell.context_tokens}"
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in cell.notes)
    return (
        f"<h2>{escape(cell.cell.name)}</h2>"
        f"<p>Devices draft {drafts}, round trips {rtt}, pauses of {fleet.think_time:g} s; prompts {prompts}.</p>{notes}"
        f"{legend(colours)}<div class='charts'>{''.join(_charts(cell, colours, settings))}</div>"
        f"{_table(cell, 'Over all sizes tried', CAPACITY_ROWS)}"
        f"{_table(cell, f'With {cell.common_devices} devices', LOAD_ROWS if cell.common_devices else ())}"
        f"<details><summary>All points</summary>{_all_points(cell)}</details>"
    )


def _simulated(cell: CellSummary, simulated: Mapping[str, Sequence[SideBySide]]) -> str:
    systems = simulated.get(cell.cell.name)
    if not systems:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in COMPARED)
    tables = []
    for caption, rows in compared_rows(cell, systems):
        body = "".join(
            f"<tr><td>{escape(system)}</td>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
            for system, values in rows
        )
        tables.append(
            f"<p>{escape(caption)}</p><div class='scroll'><table><thead><tr><th>system</th>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )
    return f"<h3>The same, simulated</h3>{''.join(tables)}"


def _charts(cell: CellSummary, colours: Mapping[str, str], settings: BenchSettings) -> list[str]:
    wanted: Sequence[tuple[str, Callable[[Measures], float], float | None]] = (
        ("Attained share of the sessions", lambda m: m.attainment, settings.search.level),
        ("Goodput, tokens/s", lambda m: m.goodput, None),
        ("First token, p95, s", lambda m: m.first_token_s.p95, None),
        ("Engine time per token, ms", lambda m: m.engine_time_per_token * 1e3, None),
    )
    return [_chart(title, value, level, cell, colours) for title, value, level in wanted]


def _chart(
    title: str,
    value: Callable[[Measures], float],
    level: float | None,
    cell: CellSummary,
    colours: Mapping[str, str],
) -> str:
    lines = {one.system: _line(one, value) for one in cell.systems}
    sizes = [x for points in lines.values() for x, _ in points]
    values = [y for points in lines.values() for _, y in points]
    x = Axis("devices", min(sizes), max(sizes), logarithmic=True)
    y = Axis(title, 0.0, max(*values, level or 0.0, 1e-9))
    return line_chart(title, lines, x, y, colours, level)


def _line(one: SystemSummary, value: Callable[[Measures], float]) -> list[tuple[float, float]]:
    """The mean over the seeds at each size."""
    found: dict[int, list[float]] = {}
    for point in one.points:
        found.setdefault(point.num_devices, []).append(value(point.measures))
    return [(float(size), sum(values) / len(values)) for size, values in sorted(found.items())]


def _all_points(cell: CellSummary) -> str:
    points = [point for one in cell.systems for point in one.points]
    body = "".join(
        f"<tr><td>{escape(point.system)}</td><td>{point.num_devices}</td><td>{point.seed}</td>"
        f"<td>{point.measures.num_sessions}</td><td>{point.measures.attainment:.1%}</td>"
        f"<td>{escape(_classes(point.measures))}</td><td>{point.measures.goodput:.0f}</td>"
        f"<td>{point.measures.num_refused}</td><td>{point.measures.utilisation:.0%}</td>"
        f"<td>{point.measures.server_cpu:.2f}</td><td>{point.measures.driver_cpu:.2f}</td>"
        f"<td>{point.measures.driver_lag_p95 * 1e3:.1f}</td></tr>"
        for point in points
    )
    names = (
        *("system", "devices", "seed", "sessions", "attained", "by class", "goodput", "refused", "engine busy"),
        *("CPUs: server", "CPUs: driver", "driver late, ms"),
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _classes(measures: Measures) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in measures.attainment_by_class.items())


def _table(cell: CellSummary, caption: str, rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(one.system)}</th>" for one in cell.systems)
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(value(one))}</td>' for one in cell.systems)}</tr>"
        for name, value in rows
    )
    return (
        f"<div class='scroll'><table><thead><tr><th>{escape(caption)}</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
