"""A plan as one HTML file: the answer, a bar and a row for each system; nothing is loaded from elsewhere."""

from __future__ import annotations

from html import escape

from wisp.sim.plan.answer import Answer

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.8em;border-bottom:1px solid #ccc}
table{border-collapse:collapse}td,th{padding:.3em .8em;text-align:right}td:first-child,th:first-child{text-align:left}
thead th{border-bottom:2px solid #999}.chosen{font-weight:bold}.scroll{overflow-x:auto}
pre{background:#f5f5f5;padding:.6em .8em;overflow-x:auto}svg{width:100%;font:13px system-ui,sans-serif}
"""
LEFT, BAR, RIGHT, ROW = 160, 560, 140, 30
"""Of the chart: widths of names, longest bar and figures, height of a row, in SVG units."""
CHOSEN, OTHERS = "#3f8f57", "#9bb8cf"


def html_plan(answer: Answer) -> str:
    """The whole page."""
    first, *others = answer.words()
    body = [
        "<h1>WISP: what to deploy</h1>",
        f"<p><strong>{escape(first)}</strong></p>",
        *(f"<p>{escape(line)}</p>" for line in others),
        "<h2>Devices that one GPU serves</h2>",
        _chart(answer),
        f"<p>Simulated on {escape(answer.machine)}. Lines show 95 % intervals over seeds.</p>",
        f"<h2>At {answer.plan.margin:.0%} of them</h2>",
        _table(answer),
        "<h2>Start it</h2>",
        f"<pre>{escape(chr(10).join(answer.commands()))}</pre>",
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"/><title>WISP: what to deploy</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _chart(answer: Answer) -> str:
    plan = answer.plan
    scale = BAR / max(plan.capacity(system).high for system in plan.systems)
    rows = []
    for number, system in enumerate(plan.systems):
        served, middle = plan.capacity(system), number * ROW + ROW / 2
        width, spread = served.mean * scale, (served.half_width or 0.0) * scale
        colour = CHOSEN if system == plan.recommended else OTHERS
        rows.append(
            f'<text x="{LEFT - 10}" y="{middle + 4:g}" text-anchor="end">{escape(system)}</text>'
            f'<rect x="{LEFT}" y="{middle - 9:g}" width="{width:.1f}" height="18" fill="{colour}"/>'
            f'<path d="M{LEFT + max(width - spread, 0.0):.1f} {middle:g}H{LEFT + width + spread:.1f}" stroke="#222"/>'
            f'<text x="{LEFT + width + spread + 8:.1f}" y="{middle + 4:g}">{served.mean:.0f}</text>'
        )
    size = f"0 0 {LEFT + BAR + RIGHT} {len(rows) * ROW}"
    return f'<svg viewBox="{size}" role="img" aria-label="Devices served by each system">{"".join(rows)}</svg>'


def _table(answer: Answer) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("system", *answer.heads()))
    rows = []
    for system in answer.plan.systems:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in answer.row(system))
        chosen = ' class="chosen"' if system == answer.plan.recommended else ""
        rows.append(f"<tr{chosen}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
