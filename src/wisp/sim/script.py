"""What is going to happen in one session, whatever the policy: lengths, and the fate of a draft at each position."""

from __future__ import annotations

from dataclasses import dataclass

from wisp.sim.acceptance import Fate
from wisp.types import SLO, DraftedToken, FinishReason, GenerationRequest, SamplingParams, StopRules, TokenId

TOKEN, END, WRONG = 0, 1, 2
"""The target's tokens are all alike but for its last; a drafter that errs says WRONG."""


Outcome = tuple[int, TokenId | None, FinishReason | None]
"""What the verification of a draft gave: accepted tokens, the one after them if there is one, whether the text ends."""


@dataclass(frozen=True, slots=True)
class SessionScript:
    """One session as the workload wants it."""

    num_prompt_tokens: int
    num_output_tokens: int
    """The last one ends the text."""
    slo: SLO | None
    fate: Fate
    """Of its drafts."""

    def generation(self, max_tokens: int) -> GenerationRequest:
        """The request as a client makes it: nobody knows the length of the answer."""
        tokens = (TOKEN,) * self.num_prompt_tokens
        return GenerationRequest(tokens, len(tokens), SamplingParams(), StopRules(max_tokens, frozenset({END})))

    def token(self, position: int) -> TokenId:
        """The target's token at an output position."""
        return END if position == self.num_output_tokens - 1 else TOKEN

    def drafted(self, start: int, index: int) -> DraftedToken | None:
        """Token `index` of a draft that begins at an output position; None: the drafter has no more to say."""
        drafted = self.fate.drafted(start, index)
        if drafted is None:
            return None
        right, stats = drafted
        token = WRONG
        if right:
            token = END if start + index == self.num_output_tokens - 1 else TOKEN
        return DraftedToken(token, stats)

    def verify(self, position: int, num_verified: int, max_tokens: int) -> Outcome:
        """Judge a draft of `num_verified` tokens that starts at an output position, as an engine does."""
        last = (self.num_output_tokens if self.num_output_tokens < max_tokens else max_tokens) - 1
        num_accepted = self.fate.num_right(position, num_verified) if num_verified else 0
        if position + num_accepted < last:
            return num_accepted, TOKEN, None
        token = self.token(last)
        reason = FinishReason.STOP if token == END else FinishReason.LENGTH
        if position + num_accepted > last:
            return last - position + 1, None, reason
        return num_accepted, token, reason
