"""What a verifier knows of a session that is open there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wisp.sim.script import SessionScript
from wisp.types import DecodeRequest, DraftRequest, SessionId, Verdict, VerificationRequest


@dataclass(slots=True, eq=False)
class ServedSession:
    """What the server knows of a session, and the round it is working on."""

    session_id: SessionId
    script: SessionScript
    max_new_tokens: int
    send: Callable[[Verdict], None]
    lost: Callable[[], None]
    """Called when the verifier fails."""
    num_output: int = 0
    """Output tokens in its history; more than none when it opens: it was begun elsewhere."""
    num_cached: int = 0
    """On the GPU, or in the host's memory."""
    num_swapped: int = 0
    """Of those, in the host's memory."""
    num_drafter_knows: int = 0
    """Tokens of the history that the drafter beside the target has read."""
    is_open: bool = False
    request: DraftRequest | DecodeRequest | None = None
    arrival: float = 0.0
    deadline: float = 0.0
    tokens_left: int = 0
    """Verdicts of this round still to come."""

    @property
    def num_tokens(self) -> int:
        return self.script.num_prompt_tokens + self.num_output

    def verification(self) -> VerificationRequest:
        """Its round, as the scheduler sees it; of plain decoding, the next token."""
        request = self.request
        assert request is not None, "only rounds are queued"
        num_drafted, max_own_draft = 0, self.tokens_left - 1
        survival: tuple[float, ...] = ()
        if isinstance(request, DraftRequest):
            num_drafted, survival, max_own_draft = len(request.tokens), request.survival, 0
        return VerificationRequest(
            self.session_id,
            request.round,
            self.script.num_prompt_tokens + self.num_output,
            self.num_cached,
            num_drafted,
            self.arrival,
            survival,
            self.deadline,
            self.script.slo,
            max_own_draft,
        )
