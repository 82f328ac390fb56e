"""What a pane of the demo shows."""

from __future__ import annotations

from wisp.demo.view import ACCEPTED_STYLE, DRAFT_STYLE, PROMPT_STYLE, TARGET_STYLE, Pane, render_panes, session_text
from wisp.policy.controller import FixedLength
from wisp.policy.session import Session, SessionSettings
from wisp.types import DraftedToken, GenerationRequest, SamplingParams, StopRules, TokenId, Verdict


def letters(tokens: list[TokenId]) -> str:
    return "".join(chr(token) for token in tokens)


def session() -> Session:
    """Prompt "ab", then "c" of the target, "d" accepted, "e" of the target, and a draft "fg"."""
    request = GenerationRequest((97, 98), 2, SamplingParams(), StopRules(20))
    given = Session(request, FixedLength(2), SessionSettings(), None, 0.0)
    given.begin_round(0.0)
    given.on_verdict(Verdict(1, 0, 0, ord("c")), 0.0)
    given.begin_round(0.0)
    for letter in "dx":
        given.on_draft_token(DraftedToken(ord(letter)), 0.0)
    given.on_verdict(Verdict(2, 2, 1, ord("e")), 0.0)
    given.begin_round(0.0)
    for letter in "fg":
        given.on_draft_token(DraftedToken(ord(letter)), 0.0)
    return given


def test_tokens_are_coloured_by_where_they_came_from() -> None:
    """Prompt, the target's own, accepted drafts, and what is being drafted."""
    text = session_text(session(), letters)
    assert text.plain == "abcdefg"
    spans = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    assert text.style == PROMPT_STYLE
    assert spans == [("c", TARGET_STYLE), ("d", ACCEPTED_STYLE), ("e", TARGET_STYLE), ("fg", DRAFT_STYLE)]


def test_a_pane_without_a_session_waits() -> None:
    """Before its first job a device shows an empty pane."""
    assert render_panes([Pane("laptop", letters)], lines=3, width=80)
