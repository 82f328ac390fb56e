"""What is going to happen in one session, whatever the policy: lengths, and the fate of a draft at each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from wisp.sim.acceptance import stats
from wisp.types import SLO, DraftedToken, FinishReason, GenerationRequest, SamplingParams, StopRules, TokenId

TOKEN, END, WRONG = 0, 1, 2
"""The target's tokens are all alike but for its last; a drafter that errs says WRONG."""

MARGIN = 64
"""Positions past the end that a draft may still run through, after an error before it."""


class Outcome(NamedTuple):
    """What the verification of a draft gave."""

    num_accepted: int
    next_token: TokenId | None
    finish_reason: FinishReason | None

    @property
    def num_committed(self) -> int:
        return self.num_accepted + (self.next_token is not None)


@dataclass(frozen=True, slots=True)
class SessionScript:
    """One session as the workload wants it."""

    num_prompt_tokens: int
    num_output_tokens: int
    """The last one ends the text."""
    slo: SLO | None
    right: list[bool]
    """Per output position (and MARGIN more): whether the drafter says what the target says."""
    predicted: list[float]
    """Per output position: its predictor's probability of that."""

    def generation(self, max_tokens: int) -> GenerationRequest:
        """The request as a client makes it: nobody knows the length of the answer."""
        tokens = (TOKEN,) * self.num_prompt_tokens
        return GenerationRequest(tokens, len(tokens), SamplingParams(), StopRules(max_tokens, frozenset({END})))

    def token(self, position: int) -> TokenId:
        """The target's token at an output position."""
        return END if position == self.num_output_tokens - 1 else TOKEN

    def drafted(self, position: int) -> DraftedToken:
        """What the drafter says there."""
        token = WRONG
        if self.right[position]:
            token = END if position == self.num_output_tokens - 1 else TOKEN
        return DraftedToken(token, stats(self.predicted[position]))

    def verify(self, position: int, num_verified: int, max_tokens: int) -> Outcome:
        """Judge a draft of `num_verified` tokens that starts at an output position, as an engine does."""
        last = min(self.num_output_tokens, max_tokens) - 1
        for current in range(position, position + num_verified + 1):
            accepted = current < position + num_verified and self.right[current]
            if current == last:
                reason = FinishReason.STOP if self.token(current) == END else FinishReason.LENGTH
                num_accepted = current - position + accepted
                return Outcome(num_accepted, None if accepted else self.token(current), reason)
            if not accepted:
                return Outcome(current - position, TOKEN, None)
        raise AssertionError("the last position always returns")
