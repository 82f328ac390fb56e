"""Values of types.py to protobuf messages and back; whatever breaks the protocol raises ProtocolError."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from wisp.errors import (
    ConnectionLost,
    EngineError,
    InvalidRequest,
    ModelMismatch,
    PeerError,
    ProtocolError,
    ServerBusy,
    SessionFenced,
    SessionLost,
    VersionMismatch,
    VocabularyMismatch,
    WispError,
)
from wisp.protocol import MAX_DRAFT_TOKENS
from wisp.protocol import wisp_pb2 as pb
from wisp.types import (
    AcceptanceRule,
    DecodeRequest,
    DraftedToken,
    DraftRequest,
    FinishReason,
    GenerationRequest,
    Hints,
    Prices,
    SamplingParams,
    SparseDistribution,
    StopRules,
    TokenLogprobs,
    Verdict,
)

_RULE_TO_WIRE = {
    AcceptanceRule.COUPLED: pb.ACCEPTANCE_RULE_COUPLED,
    AcceptanceRule.REJECTION: pb.ACCEPTANCE_RULE_REJECTION,
}
_RULE_FROM_WIRE = {wire: rule for rule, wire in _RULE_TO_WIRE.items()}
_REASON_TO_WIRE = {
    None: pb.FINISH_REASON_NONE,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_REASON_FROM_WIRE = {wire: reason for reason, wire in _REASON_TO_WIRE.items()}

MAX_TOP_LOGPROBS = 20


def rules_to_wire(rules: Iterable[AcceptanceRule]) -> list[pb.AcceptanceRule.ValueType]:
    """Acceptance rules for the server's hello."""
    return [_RULE_TO_WIRE[rule] for rule in rules]


def rules_from_wire(rules: Iterable[pb.AcceptanceRule.ValueType]) -> tuple[AcceptanceRule, ...]:
    """Acceptance rules of the server's hello; unknown ones are left out."""
    return tuple(_RULE_FROM_WIRE[rule] for rule in rules if rule in _RULE_FROM_WIRE)


def open_to_wire(session: int, epoch: int, request: GenerationRequest) -> pb.Open:
    """The frame that starts a session or takes it up again."""
    return pb.Open(
        session=session,
        epoch=epoch,
        tokens=request.tokens,
        num_prompt_tokens=request.num_prompt_tokens,
        sampling=_sampling_to_wire(request.sampling),
        max_tokens=request.stop.max_tokens,
        stop_token_ids=sorted(request.stop.stop_token_ids),
        slo=request.slo or "",
    )


def open_from_wire(message: pb.Open, vocabulary_size: int) -> GenerationRequest:
    """Check and convert an open frame. Raises ProtocolError."""
    _require(message.session != 0, "session 0 is reserved for the stream")
    _require(0 < message.num_prompt_tokens <= len(message.tokens), "num_prompt_tokens must be in 1..len(tokens)")
    _check_ids("tokens", message.tokens, vocabulary_size)
    _check_ids("stop_token_ids", message.stop_token_ids, vocabulary_size)
    _require(message.max_tokens > 0, "max_tokens must be positive")
    return GenerationRequest(
        tokens=tuple(message.tokens),
        num_prompt_tokens=message.num_prompt_tokens,
        sampling=_sampling_from_wire(message.sampling, vocabulary_size),
        stop=StopRules(message.max_tokens, frozenset(message.stop_token_ids)),
        slo=message.slo or None,
    )


def draft_to_wire(session: int, epoch: int, request: DraftRequest) -> pb.Draft:
    """The frame that carries one draft."""
    distributions = [drafted.distribution for drafted in request.tokens]
    return pb.Draft(
        session=session,
        epoch=epoch,
        round=request.round,
        num_committed=request.num_committed,
        tokens=[drafted.token for drafted in request.tokens],
        survival=bytes(round(255 * min(max(value, 0.0), 1.0)) for value in request.survival),
        draft_speed=request.draft_speed,
        rtt=request.rtt,
        time_left=_finite_or_none(request.time_left),
        q=[pb.SparseQ(ids=q.ids, weights=q.weights) for q in distributions if q is not None]
        if any(distributions)
        else (),
    )


def draft_from_wire(message: pb.Draft, vocabulary_size: int, max_tokens: int = MAX_DRAFT_TOKENS) -> DraftRequest:
    """Check and convert a draft frame. Raises ProtocolError."""
    num_tokens = len(message.tokens)
    _require(0 < num_tokens <= max_tokens, f"a draft has 1..{max_tokens} tokens, not {num_tokens}")
    _check_ids("tokens", message.tokens, vocabulary_size)
    _require(len(message.survival) in (0, num_tokens), "survival must have one byte per drafted token")
    _require(len(message.q) in (0, num_tokens), "q must have one distribution per drafted token")
    distributions: Sequence[SparseDistribution | None]
    distributions = [_q_from_wire(q, vocabulary_size) for q in message.q] or [None] * num_tokens
    drawn = all(q is None or token in q.ids for token, q in zip(message.tokens, distributions, strict=True))
    _require(drawn, "q gives a drafted token no weight")
    return DraftRequest(
        round=message.round,
        num_committed=message.num_committed,
        tokens=tuple(DraftedToken(token, None, q) for token, q in zip(message.tokens, distributions, strict=True)),
        survival=tuple(byte / 255 for byte in message.survival),
        draft_speed=_measured("draft_speed", message.draft_speed),
        rtt=_measured("rtt", message.rtt),
        time_left=_time_left(message),
    )


def decode_to_wire(session: int, epoch: int, request: DecodeRequest) -> pb.Decode:
    """The frame that asks for plain tokens."""
    return pb.Decode(
        session=session,
        epoch=epoch,
        round=request.round,
        num_committed=request.num_committed,
        num_tokens=request.num_tokens,
        rtt=request.rtt,
        time_left=_finite_or_none(request.time_left),
    )


def decode_from_wire(message: pb.Decode) -> DecodeRequest:
    """Check and convert a decode frame. Raises ProtocolError."""
    _require(message.num_tokens > 0, "num_tokens must be positive")
    return DecodeRequest(
        round=message.round,
        num_committed=message.num_committed,
        num_tokens=message.num_tokens,
        rtt=_measured("rtt", message.rtt),
        time_left=_time_left(message),
    )


def verdict_to_wire(session: int, epoch: int, num_committed: int, verdict: Verdict) -> pb.Verdict:
    """The frame that answers a draft or a decode; `num_committed` is the history's length before it."""
    return pb.Verdict(
        session=session,
        epoch=epoch,
        round=verdict.round,
        num_committed=num_committed,
        num_verified=verdict.num_verified,
        num_accepted=verdict.num_accepted,
        next_token=verdict.next_token,
        finish_reason=_REASON_TO_WIRE[verdict.finish_reason],
        final=verdict.final,
        logprobs=[_logprobs_to_wire(entry) for entry in verdict.logprobs],
        queue_time=verdict.hints.queue_time,
        verification_time=verdict.hints.verification_time,
        price_per_position=verdict.hints.prices.per_position,
        price_per_round=verdict.hints.prices.per_round,
        price_per_plain_token=verdict.hints.prices.per_plain_token,
        plain_tokens=verdict.hints.prices.plain_tokens,
    )


def verdict_from_wire(message: pb.Verdict) -> Verdict:
    """Check and convert a verdict frame. Raises ProtocolError."""
    _require(message.num_accepted <= message.num_verified, "more tokens accepted than verified")
    _require(message.finish_reason in _REASON_FROM_WIRE, f"unknown finish reason {message.finish_reason}")
    return Verdict(
        round=message.round,
        num_verified=message.num_verified,
        num_accepted=message.num_accepted,
        next_token=message.next_token if message.HasField("next_token") else None,
        logprobs=tuple(_logprobs_from_wire(entry) for entry in message.logprobs),
        finish_reason=_REASON_FROM_WIRE[message.finish_reason],
        final=message.final,
        hints=Hints(
            queue_time=message.queue_time,
            verification_time=message.verification_time,
            prices=_prices_from_wire(message),
        ),
    )


def _prices_from_wire(message: pb.Verdict) -> Prices:
    position, extra = message.price_per_position, message.price_per_round
    decoded = message.price_per_plain_token if message.HasField("price_per_plain_token") else position + extra
    return Prices(position, extra, decoded, max(1.0, message.plain_tokens))


def error_to_wire(session: int, epoch: int, error: WispError) -> pb.Error:
    """The frame that reports `error`; session 0 is the whole stream."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), pb.ERROR_CODE_INTERNAL)
    return pb.Error(
        session=session,
        epoch=epoch,
        code=code,
        message=str(error),
        field=(error.field or "") if isinstance(error, InvalidRequest) else "",
        retry_after=error.retry_after if isinstance(error, ServerBusy) else 0.0,
    )


def error_from_wire(message: pb.Error) -> WispError:
    """The exception that an error frame stands for."""
    if message.code == pb.ERROR_CODE_INVALID:
        return InvalidRequest(message.message, message.field or None)
    if message.code == pb.ERROR_CODE_BUSY:
        return ServerBusy(message.message, message.retry_after)
    if message.code == pb.ERROR_CODE_DRAINING:
        return ConnectionLost(message.message)
    kind = next((kind for kind, code in _CODES.items() if code == message.code), PeerError)
    return kind(message.message)


_CODES: dict[type[WispError], pb.ErrorCode.ValueType] = {
    InvalidRequest: pb.ERROR_CODE_INVALID,
    ServerBusy: pb.ERROR_CODE_BUSY,
    VersionMismatch: pb.ERROR_CODE_VERSION,
    ModelMismatch: pb.ERROR_CODE_MODEL,
    VocabularyMismatch: pb.ERROR_CODE_VOCABULARY,
    SessionLost: pb.ERROR_CODE_SESSION_LOST,
    SessionFenced: pb.ERROR_CODE_SESSION_FENCED,
    ConnectionLost: pb.ERROR_CODE_DRAINING,
    ProtocolError: pb.ERROR_CODE_PROTOCOL,
    EngineError: pb.ERROR_CODE_INTERNAL,
}


def _sampling_to_wire(params: SamplingParams) -> pb.Sampling:
    return pb.Sampling(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias_ids=[token for token, _ in params.logit_bias],
        bias_values=[value for _, value in params.logit_bias],
        seed=params.seed,
        choice_index=params.choice_index,
        rule=_RULE_TO_WIRE[params.rule],
        top_logprobs=params.num_top_logprobs,
    )


def _sampling_from_wire(message: pb.Sampling, vocabulary_size: int) -> SamplingParams:
    _require(len(message.bias_ids) == len(message.bias_values), "bias_ids and bias_values differ in length")
    _check_ids("bias_ids", message.bias_ids, vocabulary_size)
    _require(message.rule in _RULE_FROM_WIRE, f"unknown acceptance rule {message.rule}")
    top_logprobs = message.top_logprobs if message.HasField("top_logprobs") else None
    _require((top_logprobs or 0) <= MAX_TOP_LOGPROBS, f"top_logprobs must be at most {MAX_TOP_LOGPROBS}")
    biases = tuple(zip(message.bias_ids, message.bias_values, strict=True))
    return SamplingParams(
        temperature=_in_range("temperature", message.temperature, 0.0, 100.0),
        top_k=message.top_k,
        top_p=_in_range("top_p", message.top_p, 0.0, 1.0),
        min_p=_in_range("min_p", message.min_p, 0.0, 1.0),
        repetition_penalty=_in_range("repetition_penalty", message.repetition_penalty, 1e-3, 1e3),
        presence_penalty=_in_range("presence_penalty", message.presence_penalty, -100.0, 100.0),
        frequency_penalty=_in_range("frequency_penalty", message.frequency_penalty, -100.0, 100.0),
        logit_bias=tuple((token, _in_range("logit_bias", value, -1e3, 1e3)) for token, value in biases),
        seed=message.seed,
        choice_index=message.choice_index,
        rule=_RULE_FROM_WIRE[message.rule],
        num_top_logprobs=top_logprobs,
    )


def _q_from_wire(message: pb.SparseQ, vocabulary_size: int) -> SparseDistribution:
    _require(len(message.ids) == len(message.weights) > 0, "q needs as many weights as ids, and at least one")
    _require(len(set(message.ids)) == len(message.ids), "q names an id twice")
    _require(all(0 < weight < 1 << 16 for weight in message.weights), "q weights must be in 1..65535")
    _check_ids("q", message.ids, vocabulary_size)
    return SparseDistribution(tuple(message.ids), tuple(message.weights))


def _logprobs_to_wire(entry: TokenLogprobs) -> pb.Logprobs:
    return pb.Logprobs(
        logprob=entry.logprob,
        top_ids=[token for token, _ in entry.top],
        top_logprobs=[value for _, value in entry.top],
    )


def _logprobs_from_wire(message: pb.Logprobs) -> TokenLogprobs:
    _require(len(message.top_ids) == len(message.top_logprobs), "top_ids and top_logprobs differ in length")
    return TokenLogprobs(message.logprob, tuple(zip(message.top_ids, message.top_logprobs, strict=True)))


def _time_left(message: pb.Draft | pb.Decode) -> float:
    if not message.HasField("time_left"):
        return math.inf
    _require(math.isfinite(message.time_left), f"time_left must be finite, not {message.time_left}")
    return message.time_left


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _measured(field: str, value: float) -> float:
    """A speed or a duration; 0: unknown."""
    return _in_range(field, value, 0.0, 1e9)


def _in_range(field: str, value: float, low: float, high: float) -> float:
    _require(low <= value <= high, f"{field} must be in {low:g}..{high:g}, not {value:g}")
    return value


def _check_ids(field: str, ids: Iterable[int], vocabulary_size: int) -> None:
    highest = max(ids, default=0)
    _require(highest < vocabulary_size, f"{field}: id {highest} is beyond the vocabulary of {vocabulary_size} tokens")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProtocolError(message)
