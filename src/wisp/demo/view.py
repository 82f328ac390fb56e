"""The live terminal view: one pane per device, drafted, accepted and corrected tokens in colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from wisp.metrics import summarise_drafting
from wisp.policy.session import Session
from wisp.types import TokenId

PROMPT_STYLE = "dim"
ACCEPTED_STYLE = "green"
TARGET_STYLE = "yellow"
DRAFT_STYLE = "dim italic cyan"

Detokenise = Callable[[Sequence[TokenId]], str]


@dataclass(slots=True)
class Pane:
    """What one emulated device shows; `session` is the live policy object of the generation it runs."""

    title: str
    detokenise: Detokenise
    session: Session | None = None
    status: str = "waiting"

    def render(self, lines: int) -> RenderableType:
        """The newest `lines` lines of the running text."""
        subtitle = self.status
        if self.session is not None:
            share = summarise_drafting(self.session.records).accepted_share
            subtitle += f": {self.session.num_output_tokens} tokens, {share:.0%} accepted"
        text = Text("") if self.session is None else session_text(self.session, self.detokenise)
        return Panel(_tail(text, lines), title=self.title, subtitle=subtitle, height=lines + 2)


def session_text(session: Session, detokenise: Detokenise) -> Text:
    """A generation so far: prompt, output coloured by where each token came from, and the running draft."""
    num_prompt = session.generation.num_prompt_tokens
    text = Text(detokenise(session.tokens[:num_prompt]), style=PROMPT_STYLE)
    position = num_prompt
    for record in session.records:
        accepted = session.tokens[position : position + record.num_accepted]
        own = session.tokens[position + record.num_accepted : position + record.num_committed]
        text.append(detokenise(accepted), style=ACCEPTED_STYLE)
        text.append(detokenise(own), style=TARGET_STYLE)
        position += record.num_committed
    return text.append(detokenise([drafted.token for drafted in session.draft]), style=DRAFT_STYLE)


def render_panes(panes: Sequence[Pane], lines: int, width: int) -> RenderableType:
    """All devices side by side, with a legend."""
    legend = Text.assemble(
        ("prompt", PROMPT_STYLE),
        "  ",
        ("being drafted on the device", DRAFT_STYLE),
        "  ",
        ("drafted and accepted", ACCEPTED_STYLE),
        "  ",
        ("the target's own token", TARGET_STYLE),
    )
    columns = max(1, min(3, width // 44))
    grid = Columns([pane.render(lines) for pane in panes], width=width // columns - 1, equal=True)
    return Group(legend, grid)


def _tail(text: Text, lines: int) -> Text:
    return Text("\n").join(text.split("\n", allow_blank=True)[-lines:])
