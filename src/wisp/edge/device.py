"""What every request on this device needs: the connection, the target's text tools and the drafter."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer

from wisp.config import STOP_RULES, EdgeConfig
from wisp.drafting import Drafting, DraftWorker
from wisp.edge.chat import ChatTemplate
from wisp.edge.client import ServerConnection
from wisp.edge.decode import Generation
from wisp.edge.settings import Defaults, GenerationSettings
from wisp.edge.stop_rules import stop_rule
from wisp.edge.target import TargetInfo
from wisp.formats.predictor import TrainedPredictor
from wisp.policy.controller import StopRule
from wisp.policy.session import Session, SessionSettings
from wisp.types import AcceptanceRule, GenerationRequest, StopRules, TokenId


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is connected and ready."""

    config: EdgeConfig
    connection: ServerConnection
    tokenizer: Tokenizer
    worker: DraftWorker | None
    trained: TrainedPredictor | None = None
    clock: Callable[[], float] = time.monotonic
    _latest: deque[Session] = field(default_factory=lambda: deque(maxlen=1), init=False)
    """The session that the next one learns from."""

    @property
    def target(self) -> TargetInfo:
        """The server's model, on the terms of the newest connection."""
        return self.connection.target

    @property
    def chat_template(self) -> ChatTemplate:
        """The target's own."""
        return ChatTemplate(self.target.chat_template, self.target.special_tokens)

    @property
    def defaults(self) -> Defaults:
        """What holds where a request is silent."""
        rule = AcceptanceRule(self.config.rule)
        offered = tuple(name for name in STOP_RULES if name != "predicted" or self.trained is not None)
        return Defaults(self.target, rule, self.config.slo, lambda: secrets.randbits(64), offered)

    def generation(self, prompt: Sequence[TokenId], settings: GenerationSettings, choice_index: int) -> Generation:
        """One generation, not opened yet. The prompt must leave room in the target's context."""
        request = GenerationRequest(
            tokens=tuple(prompt),
            num_prompt_tokens=len(prompt),
            sampling=replace(settings.sampling, choice_index=choice_index),
            stop=StopRules(self._max_tokens(len(prompt), settings), settings.stop_token_ids),
            slo=settings.slo,
        )
        remote = self.connection.session()
        return Generation(
            session=self._session(request, settings),
            remote=remote,
            drafting=Drafting(self._worker(settings), remote.name, self.clock),
            connect_timeout=self.config.connect_timeout,
            clock=self.clock,
        )

    def _session(self, request: GenerationRequest, settings: GenerationSettings) -> Session:
        num_draft_tokens = self._num_draft_tokens(settings)
        slo = self.target.slo_classes.get(settings.slo or self.target.default_slo)
        earlier = self._latest[-1].measured if self._latest else None
        session = Session(
            request,
            self._stop_rule(num_draft_tokens, settings),
            # the server verifies on a history that fills the context, and its verdict adds one token
            SessionSettings(max_draft_tokens=num_draft_tokens, context_length=self.target.context_length + 1),
            slo,
            self.clock(),
            earlier,
        )
        self._latest.append(session)
        return session

    def _stop_rule(self, max_tokens: int, settings: GenerationSettings) -> StopRule:
        """The request's, or the device's; a threshold goes with the rule that it was given for."""
        name, threshold = settings.stop_rule or self.config.stop_rule, settings.stop_threshold
        if threshold is None and name == self.config.stop_rule:
            threshold = self.config.stop_threshold
        return stop_rule(name, max_tokens, threshold, self.trained)

    def _max_tokens(self, num_prompt_tokens: int, settings: GenerationSettings) -> int:
        room = self.target.context_length - num_prompt_tokens
        return room if settings.max_tokens is None else min(settings.max_tokens, room)

    def _num_draft_tokens(self, settings: GenerationSettings) -> int:
        wanted = self.config.max_draft_tokens if settings.num_draft_tokens is None else settings.num_draft_tokens
        return min(wanted, self.target.max_draft_tokens)

    def _worker(self, settings: GenerationSettings) -> DraftWorker | None:
        return self.worker if self._num_draft_tokens(settings) > 0 else None
