"""Drafter and target in one process, and a stop rule of one's own.

    .venv/bin/python examples/own_stop_rule.py

The session is the policy object that devices run; server and wire are left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from tokenizers import Tokenizer

from wisp.demo.pair import DRAFT, TARGET, heldout_prompts
from wisp.engines.base import StepMember
from wisp.engines.drafter import TransformersDrafter
from wisp.engines.target import TransformersTarget
from wisp.metrics import summarise_drafting
from wisp.policy.controller import DraftSoFar, FixedLength, RoundContext, StopRule
from wisp.policy.session import Session, SessionSettings
from wisp.types import DraftStats, GenerationRequest, SamplingParams, StopRules, Verdict


@dataclass(frozen=True)
class StopWhenTorn(StopRule):
    """Draft on while the two most likely tokens are at least `margin` apart in the logits."""

    margin: float
    max_tokens: int

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        """The draft model's own confidence."""
        return 0.5 if stats is None else stats.confidence

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        """The rule itself; prices and speeds in `context` are not looked at."""
        last = draft.stats[-1] if draft.stats else None
        return len(draft.stats) < self.max_tokens and (last is None or last.margin >= self.margin)


def write(
    tokenizer: Tokenizer, target: TransformersTarget, drafter: TransformersDrafter, text: str, rule: StopRule
) -> Session:
    """One greedy generation of 64 tokens under a stop rule."""
    prompt = tuple(tokenizer.encode(text).ids)
    request = GenerationRequest(prompt, len(prompt), SamplingParams(), StopRules(64))
    session = Session(request, rule, SessionSettings(), slo=None, started=time.monotonic())
    target.open("me", "me", request)
    drafter.open("me", request)
    while session.finish_reason is None:
        session.begin_round(time.monotonic())
        while session.wants_draft_token:
            [drafted] = drafter.draft(["me"])
            session.on_draft_token(drafted, time.monotonic())
        draft = tuple(session.draft)
        missing = len(session.tokens) - 1 - target.num_cached_tokens("me")
        [outcome] = target.step([StepMember("me", missing, draft)])
        verdict = Verdict(
            session.round, outcome.num_verified, outcome.num_accepted, outcome.next_token, (), outcome.finish_reason
        )
        committed = session.on_verdict(verdict, time.monotonic())
        drafter.commit("me", outcome.num_accepted, committed[outcome.num_accepted :])
    target.close("me")
    drafter.close("me")
    return session


def main() -> None:
    """Compare the rule with fixed draft lengths."""
    target, drafter = TransformersTarget.load(str(TARGET)), TransformersDrafter.load(str(DRAFT))
    tokenizer = Tokenizer.from_str(target.card.tokenizer_json.decode())
    texts = [prompt.text for prompt in heldout_prompts()[:4]]
    rules: dict[str, StopRule] = {
        "fixed K = 2": FixedLength(2),
        "fixed K = 6": FixedLength(6),
        "stop when torn": StopWhenTorn(margin=1.0, max_tokens=6),
    }
    outputs = set()
    for name, rule in rules.items():
        sessions = [write(tokenizer, target, drafter, text, rule) for text in texts]
        outputs.add(tuple(tuple(session.tokens) for session in sessions))
        summary = summarise_drafting(record for session in sessions for record in session.records)
        print(
            f"{name:15}  {summary.num_drafted} tokens drafted, {summary.accepted_share:.0%} accepted, "
            f"{summary.waste_ratio:.0%} of the drafting time wasted"
        )
    print("all outputs identical:", len(outputs) == 1)


if __name__ == "__main__":
    main()
