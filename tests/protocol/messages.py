"""Strategies: well-formed protobuf messages with any values, and sensible values of types.py."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

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

VOCABULARY = 500

_KINDS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_UINT32: st.one_of(st.integers(0, 4), st.integers(0, VOCABULARY), st.integers(0, 2**32 - 1)),
    FieldDescriptor.TYPE_FIXED64: st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1)),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=8),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 12),
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Any:
    """A message of this type in which every field may hold anything, or nothing."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if not draw(st.booleans()):
            continue
        kind = messages(field.message_type) if field.type == FieldDescriptor.TYPE_MESSAGE else _KINDS[field.type]
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(kind, max_size=4)))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(message, field.name).CopyFrom(draw(kind))
        else:
            setattr(message, field.name, draw(kind))
    return message


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers that a 32-bit float holds exactly."""
    return st.floats(low, high, width=32)


tokens = st.integers(0, VOCABULARY - 1)
counts = st.integers(0, 2**32 - 1)
durations = floats(0.0, 2.0**20)
times_left = st.one_of(st.just(math.inf), floats(-1000.0, 1000.0))
bytes_as_fractions = st.integers(0, 255).map(lambda byte: byte / 255)

sampling_params = st.builds(
    SamplingParams,
    temperature=floats(0.0, 100.0),
    top_k=counts,
    top_p=floats(0.0, 1.0),
    min_p=floats(0.0, 1.0),
    repetition_penalty=floats(0.5, 100.0),
    presence_penalty=floats(-100.0, 100.0),
    frequency_penalty=floats(-100.0, 100.0),
    logit_bias=st.lists(st.tuples(tokens, floats(-1000.0, 1000.0)), max_size=4).map(tuple),
    seed=st.integers(0, 2**64 - 1),
    choice_index=counts,
    rule=st.sampled_from(AcceptanceRule),
    num_top_logprobs=st.none() | st.integers(0, 20),
)


@st.composite
def generation_requests(draw: st.DrawFn) -> GenerationRequest:
    """Any session that may be opened."""
    history = draw(st.lists(tokens, min_size=1, max_size=20))
    return GenerationRequest(
        tokens=tuple(history),
        num_prompt_tokens=draw(st.integers(1, len(history))),
        sampling=draw(sampling_params),
        stop=StopRules(draw(st.integers(1, 2**32 - 1)), draw(st.frozensets(tokens, max_size=4))),
        slo=draw(st.none() | st.text(min_size=1, max_size=8)),
    )


@st.composite
def distributions(draw: st.DrawFn, token: int) -> SparseDistribution:
    """A distribution that may have given `token`."""
    ids = draw(st.frozensets(tokens, max_size=5)) | {token}
    weights = draw(st.lists(st.integers(1, 65535), min_size=len(ids), max_size=len(ids)))
    return SparseDistribution(tuple(ids), tuple(weights))


@st.composite
def draft_requests(draw: st.DrawFn) -> DraftRequest:
    """Any draft, with distributions for all of its tokens or none."""
    drafted = draw(st.lists(tokens, min_size=1, max_size=32))
    with_q = draw(st.booleans())
    return DraftRequest(
        round=draw(counts),
        num_committed=draw(counts),
        tokens=tuple(DraftedToken(token, None, draw(distributions(token)) if with_q else None) for token in drafted),
        survival=tuple(draw(st.just([]) | st.lists(bytes_as_fractions, min_size=len(drafted), max_size=len(drafted)))),
        draft_speed=draw(durations),
        rtt=draw(durations),
        time_left=draw(times_left),
    )


decode_requests = st.builds(
    DecodeRequest,
    round=counts,
    num_committed=counts,
    num_tokens=st.integers(1, 2**32 - 1),
    rtt=durations,
    time_left=times_left,
)

logprobs = st.builds(
    TokenLogprobs,
    logprob=floats(-1e4, 0.0),
    top=st.lists(st.tuples(tokens, floats(-1e4, 0.0)), max_size=4).map(tuple),
)


prices = st.builds(Prices, durations, durations, durations, st.floats(1.0, 16.0))


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    """Any verdict."""
    num_verified = draw(st.integers(0, 32))
    return Verdict(
        round=draw(counts),
        num_verified=num_verified,
        num_accepted=draw(st.integers(0, num_verified)),
        next_token=draw(st.none() | tokens),
        logprobs=tuple(draw(st.lists(logprobs, max_size=3))),
        finish_reason=draw(st.none() | st.sampled_from(FinishReason)),
        final=draw(st.booleans()),
        hints=Hints(draw(durations), draw(durations), draw(prices)),
    )
