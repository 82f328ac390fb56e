"""What a target engine keeps of a generation whatever computes it: its history, what of a draft counts, where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wisp.engines.base import StepMember, StepOutcome
from wisp.engines.sampling import Decision, cut
from wisp.errors import EngineError, InvalidRequest
from wisp.types import DraftedToken, GenerationRequest, TokenId


@dataclass(slots=True, eq=False)
class Generation:
    """The token history of one session."""

    request: GenerationRequest
    history: list[TokenId]

    @property
    def tokens_left(self) -> int:
        """Of max_tokens."""
        return self.request.num_prompt_tokens + self.request.stop.max_tokens - len(self.history)

    def prefill_end(self, member: StepMember, num_cached: int) -> int:
        """How much of the history is cached once a member's prefill is done. Raises EngineError where that cannot be."""
        num_history, end = len(self.history), num_cached + member.num_prefill_tokens
        if end > num_history - 1 or (member.draft is not None and end != num_history - 1):
            raise EngineError(
                f"session {member.session_id!r} has {num_history} tokens, {num_cached} of them cached: it cannot "
                f"compute {member.num_prefill_tokens} before its last"
            )
        return end

    def useful(self, draft: tuple[DraftedToken, ...], vocabulary_size: int) -> tuple[DraftedToken, ...]:
        """The part of a draft that can be accepted: known ids, and the last token allowed is the target's own."""
        draft = draft[: max(0, self.tokens_left - 1)]
        unknown = (i for i, drafted in enumerate(draft) if not 0 <= drafted.token < vocabulary_size)
        return draft[: next(unknown, len(draft))]

    def commit(self, decision: Decision, draft: tuple[DraftedToken, ...]) -> StepOutcome:
        """Add what was decided to the history, up to the end of the generation."""
        end = cut(decision, draft, self.request.stop.stop_token_ids, self.tokens_left)
        self.history.extend(drafted.token for drafted in draft[: end.num_accepted])
        if end.next_token is not None:
            self.history.append(end.next_token)
        return StepOutcome(len(draft), end.num_accepted, end.next_token, end.finish_reason, end.logprobs)


def check_members(members: Sequence[StepMember]) -> None:
    """Raise EngineError for a step that no engine can compute."""
    if len({member.session_id for member in members}) < len(members):
        raise EngineError("a session appears twice in one step")


def check_request(request: GenerationRequest, vocabulary_size: int, limit: int) -> None:
    """Raise InvalidRequest for what can never be served; a session may grow to `limit` tokens."""
    if not 0 < request.num_prompt_tokens <= len(request.tokens):
        raise InvalidRequest("the prompt is empty", "prompt")
    if (highest := max(request.tokens)) >= vocabulary_size or min(request.tokens) < 0:
        wrong = highest if highest >= vocabulary_size else min(request.tokens)
        raise InvalidRequest(f"the token id {wrong} is outside the vocabulary of {vocabulary_size} tokens", "prompt")
    if request.num_output_tokens >= request.stop.max_tokens:
        raise InvalidRequest(
            f"max_tokens is {request.stop.max_tokens} and {request.num_output_tokens} tokens are there already",
            "max_tokens",
        )
    if request.num_prompt_tokens + request.stop.max_tokens > limit:
        raise InvalidRequest(
            f"{request.num_prompt_tokens} prompt tokens and max_tokens = {request.stop.max_tokens} exceed the "
            f"{limit} tokens that this server can hold for a session",
            "max_tokens",
        )
