"""A target and a drafter without models: every next token is a small hash of the history before it."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from wisp.engines import vocabulary
from wisp.engines.base import ModelCard, StepMember, StepOutcome
from wisp.errors import InvalidRequest
from wisp.types import (
    AcceptanceRule,
    DraftedToken,
    DraftStats,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    SessionId,
    SparseDistribution,
    TokenId,
    TokenLogprobs,
)

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
EOS = len(ALPHABET)
VOCABULARY_SIZE = EOS + 1
EMITTED = tuple(ALPHABET.index(character) for character in "etaoinshrdluĠ.")
CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@cache
def tokenizer_json() -> bytes:
    """A byte-level tokenizer: one token per byte, and `<eos>`."""
    vocabulary = {character: index for index, character in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return tokenizer.to_str().encode()


def fake_card(model_id: str = "fake-target", context_length: int = 4096) -> ModelCard:
    """The card of a fake model."""
    return ModelCard(
        model_id=model_id,
        tokenizer_json=tokenizer_json(),
        vocabulary=fingerprint(),
        vocabulary_size=VOCABULARY_SIZE,
        context_length=context_length,
        eos_token_ids=(EOS,),
        chat_template=CHAT_TEMPLATE,
        special_tokens={"eos_token": "<eos>"},
        emulated=True,
    )


@cache
def fingerprint() -> str:
    """The vocabulary's fingerprint."""
    return vocabulary.fingerprint(tokenizer_json())


def next_token(history: Sequence[TokenId], sampling: SamplingParams, eos_one_in: int = 0) -> TokenId:
    """The token that follows `history`; of the seed too when sampling. One in `eos_one_in` is EOS (0: none)."""
    noise = 0 if sampling.greedy else hash((sampling.seed, sampling.choice_index)) & 0xFFFFFFFF
    value = zlib.crc32(array("I", history).tobytes(), noise)
    if eos_one_in and value % eos_one_in == 0:
        return EOS
    return EMITTED[(value >> 8) % len(EMITTED)]


def generate(request: GenerationRequest, context_length: int = 4096, eos_one_in: int = 0) -> list[TokenId]:
    """The whole output, one token after the other: what every system must reproduce."""
    tokens = list(request.tokens)
    while _finish_reason(tokens, request, context_length) is None:
        tokens.append(next_token(tokens, request.sampling, eos_one_in))
    return tokens[request.num_prompt_tokens :]


@dataclass(slots=True)
class _Session:
    owner: str
    request: GenerationRequest
    tokens: list[TokenId]
    num_cached: int = 0


@dataclass(slots=True)
class FakeTarget:
    """A TargetEngine that checks how it is called; `on_step` runs first in each step and may block or raise."""

    card: ModelCard = field(default_factory=fake_card)
    kv_capacity_tokens: int = 1 << 20
    kv_page_tokens: int = 1
    eos_one_in: int = 0
    on_step: Callable[[Sequence[StepMember]], None] | None = None
    steps: list[tuple[StepMember, ...]] = field(default_factory=list)
    _sessions: dict[SessionId, _Session] = field(default_factory=dict)
    _closed: list[_Session] = field(default_factory=list)

    def open(self, session_id: SessionId, owner: str, request: GenerationRequest) -> int:
        if len(request.tokens) >= self.card.context_length:
            raise InvalidRequest(f"{len(request.tokens)} tokens leave no room in {self.card.context_length}", "prompt")
        donors = [session for session in [*self._sessions.values(), *self._closed] if session.owner == owner]
        shared = max((_shared_prefix(donor, request.tokens) for donor in donors), default=0)
        num_cached = min(shared, len(request.tokens) - 1)
        self._sessions[session_id] = _Session(owner, request, list(request.tokens), num_cached)
        return num_cached

    def history(self, session_id: SessionId) -> Sequence[TokenId]:
        return tuple(self._sessions[session_id].tokens)

    def num_cached_tokens(self, session_id: SessionId) -> int:
        return self._sessions[session_id].num_cached

    def step(self, members: Sequence[StepMember]) -> list[StepOutcome]:
        if self.on_step is not None:
            self.on_step(members)
        self.steps.append(tuple(members))
        assert len({member.session_id for member in members}) == len(members), "one session twice in a batch"
        return [self._advance(self._sessions[member.session_id], member) for member in members]

    def evict(self, session_id: SessionId) -> None:
        self._sessions[session_id].num_cached = 0

    def close(self, session_id: SessionId) -> None:
        self._closed.append(self._sessions.pop(session_id))
        del self._closed[:-4]

    def shutdown(self) -> None:
        self._sessions.clear()

    @property
    def open_sessions(self) -> set[SessionId]:
        """Ids of the sessions that are open."""
        return set(self._sessions)

    def _advance(self, session: _Session, member: StepMember) -> StepOutcome:
        missing = len(session.tokens) - 1 - session.num_cached
        assert 0 <= member.num_prefill_tokens <= missing, "more prefill than there is history"
        session.num_cached += member.num_prefill_tokens
        if member.draft is None:
            return StepOutcome()
        assert member.num_prefill_tokens == missing, "verification before the prompt is in the cache"
        outcome = self._verify(session, [drafted.token for drafted in member.draft])
        session.num_cached = len(session.tokens) - 1
        return outcome

    def _verify(self, session: _Session, draft: list[TokenId]) -> StepOutcome:
        """Commit drafted tokens while they are the target's own, then one more token of the target's."""
        logprobs: list[TokenLogprobs] = []
        for num_accepted in range(len(draft) + 1):
            token = next_token(session.tokens, session.request.sampling, self.eos_one_in)
            session.tokens.append(token)
            logprobs += _logprobs(token, session.request.sampling)
            reason = _finish_reason(session.tokens, session.request, self.card.context_length)
            if num_accepted == len(draft) or draft[num_accepted] != token:
                return StepOutcome(len(draft), num_accepted, token, reason, tuple(logprobs))
            if reason is not None:
                return StepOutcome(len(draft), num_accepted + 1, None, reason, tuple(logprobs))
        raise AssertionError("unreachable")


def _finish_reason(tokens: list[TokenId], request: GenerationRequest, context_length: int) -> FinishReason | None:
    num_output = len(tokens) - request.num_prompt_tokens
    if num_output and tokens[-1] in request.stop.stop_token_ids:
        return FinishReason.STOP
    if num_output >= request.stop.max_tokens or len(tokens) >= context_length:
        return FinishReason.LENGTH
    return None


def _logprobs(token: TokenId, sampling: SamplingParams) -> list[TokenLogprobs]:
    if sampling.num_top_logprobs is None:
        return []
    top = [(token, -0.25), *((other, -2.0 - other) for other in range(VOCABULARY_SIZE) if other != token)]
    return [TokenLogprobs(-0.25, tuple(top[: sampling.num_top_logprobs]))]


def _shared_prefix(donor: _Session, tokens: Sequence[TokenId]) -> int:
    length = min(donor.num_cached, len(tokens))
    return next((i for i in range(length) if donor.tokens[i] != tokens[i]), length)


@dataclass(slots=True)
class _Drafting:
    request: GenerationRequest
    tokens: list[TokenId]
    num_committed: int


@dataclass(slots=True)
class FakeDrafter:
    """A DraftEngine that proposes the fake target's next token with probability `accuracy`, else another one.

    Whether it is right at a position is a hash of the history too, so that runs repeat.
    """

    accuracy: float = 0.75
    eos_one_in: int = 0
    model_id: str = "fake-drafter"
    vocabulary: str | None = field(default_factory=fingerprint)
    vocabulary_size: int | None = VOCABULARY_SIZE
    weights: str | None = "fake-weights"
    context_length: int = 4096
    _sessions: dict[SessionId, _Drafting] = field(default_factory=dict)

    def open(self, session_id: SessionId, request: GenerationRequest) -> None:
        self._sessions[session_id] = _Drafting(request, list(request.tokens), len(request.tokens))

    def draft(self, session_ids: Sequence[SessionId]) -> list[DraftedToken | None]:
        return [self._draft_one(self._sessions[session_id]) for session_id in session_ids]

    def commit(self, session_id: SessionId, num_accepted: int, tokens: Sequence[TokenId]) -> None:
        session = self._sessions[session_id]
        assert session.num_committed + num_accepted <= len(session.tokens), "more accepted than drafted"
        del session.tokens[session.num_committed + num_accepted :]
        session.tokens += tokens
        session.num_committed = len(session.tokens)

    def close(self, session_id: SessionId) -> None:
        del self._sessions[session_id]

    def shutdown(self) -> None:
        self._sessions.clear()

    def _draft_one(self, session: _Drafting) -> DraftedToken | None:
        if len(session.tokens) >= self.context_length:
            return None
        sampling = session.request.sampling
        token = next_token(session.tokens, sampling, self.eos_one_in)
        right = zlib.crc32(array("I", session.tokens).tobytes(), 1) / 2**32 < self.accuracy
        if not right:
            token = EMITTED[(EMITTED.index(token) + 1) % len(EMITTED)] if token in EMITTED else EMITTED[0]
        session.tokens.append(token)
        confidence = 0.9 if right else 0.4
        stats = DraftStats(confidence, 1.0 - confidence, 4.0 * confidence, 2.0, confidence)
        sends_q = sampling.rule is AcceptanceRule.REJECTION and not sampling.greedy
        return DraftedToken(token, stats, SparseDistribution((token,), (65535,)) if sends_q else None)
