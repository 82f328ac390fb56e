"""What a server knows of sessions that it served before a run begins."""

from __future__ import annotations

from collections.abc import Iterable

from wisp.policy.scheduler import Scheduler
from wisp.sim.script import SessionScript
from wisp.types import SessionDemand, SessionId, VerificationRequest


def serve_before(scheduler: Scheduler, scripts: Iterable[SessionScript]) -> None:
    """Have each session come and go by itself: admitted, asking for its first and its last token, released; no batch runs."""
    for number, script in enumerate(scripts):
        session_id = SessionId(f"before/{number}")
        num_prompt, num_output = script.num_prompt_tokens, script.num_output_tokens
        scheduler.admit(SessionDemand(session_id, num_prompt, num_output, script.slo), 0.0)
        scheduler.cached(session_id, 0, 0.0)
        last = num_prompt + num_output - 1
        for round_, (num_history, num_cached) in enumerate(((num_prompt, 0), (last, last - 1))):
            request = VerificationRequest(session_id, round_, num_history, num_cached, 0, 0.0, slo=script.slo)
            scheduler.add(request)
            scheduler.cancel(session_id)
        scheduler.release(session_id)
