"""Values survive the wire; whatever breaks the protocol raises ProtocolError and nothing else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.messages import (
    VOCABULARY,
    decode_requests,
    draft_requests,
    generation_requests,
    messages,
    verdicts,
)
from wisp.errors import (
    ConnectionLost,
    EngineError,
    InvalidRequest,
    ModelMismatch,
    ProtocolError,
    ServerBusy,
    SessionFenced,
    SessionLost,
    VersionMismatch,
    VocabularyMismatch,
    WispError,
)
from wisp.protocol import frames
from wisp.protocol import wisp_pb2 as pb
from wisp.types import AcceptanceRule, DecodeRequest, DraftRequest, GenerationRequest, Prices, Verdict

session_ids = st.integers(1, 2**64 - 1)
epochs = st.integers(0, 2**32 - 1)


@given(session_ids, epochs, generation_requests())
def test_an_open_survives_the_wire(session: int, epoch: int, request: GenerationRequest) -> None:
    """Every field of it."""
    message = pb.Open.FromString(frames.open_to_wire(session, epoch, request).SerializeToString())
    assert (message.session, message.epoch) == (session, epoch)
    assert frames.open_from_wire(message, VOCABULARY) == request


@given(session_ids, epochs, draft_requests())
def test_a_draft_survives_the_wire(session: int, epoch: int, request: DraftRequest) -> None:
    """Survival in steps of 1/255, all else exactly."""
    message = pb.Draft.FromString(frames.draft_to_wire(session, epoch, request).SerializeToString())
    assert (message.session, message.epoch) == (session, epoch)
    assert frames.draft_from_wire(message, VOCABULARY) == request


@given(session_ids, epochs, decode_requests)
def test_a_decode_survives_the_wire(session: int, epoch: int, request: DecodeRequest) -> None:
    """Every field of it."""
    message = pb.Decode.FromString(frames.decode_to_wire(session, epoch, request).SerializeToString())
    assert (message.session, message.epoch) == (session, epoch)
    assert frames.decode_from_wire(message) == request


@given(session_ids, epochs, st.integers(0, 2**32 - 1), verdicts())
def test_a_verdict_survives_the_wire(session: int, epoch: int, before: int, verdict: Verdict) -> None:
    """Every field of it."""
    message = pb.Verdict.FromString(frames.verdict_to_wire(session, epoch, before, verdict).SerializeToString())
    assert (message.session, message.epoch, message.num_committed) == (session, epoch, before)
    assert frames.verdict_from_wire(message) == verdict


@settings(max_examples=300)
@given(st.data())
def test_any_message_is_taken_or_breaks_the_protocol(data: st.DataObject) -> None:
    """No value of any field raises anything but ProtocolError."""
    kind = data.draw(st.sampled_from([pb.Open, pb.Draft, pb.Decode, pb.Verdict]))
    message = data.draw(messages(kind.DESCRIPTOR))
    try:
        if isinstance(message, pb.Open):
            value = frames.open_from_wire(message, VOCABULARY)
            assert max(value.tokens) < VOCABULARY
        elif isinstance(message, pb.Draft):
            draft = frames.draft_from_wire(message, VOCABULARY)
            assert not math.isnan(draft.time_left)
        elif isinstance(message, pb.Decode):
            assert frames.decode_from_wire(message).num_tokens > 0
        else:
            frames.verdict_from_wire(message)
    except ProtocolError:
        return


@given(st.data())
def test_any_error_frame_is_an_exception_of_the_tree(data: st.DataObject) -> None:
    """Codes that this version does not know too."""
    assert isinstance(frames.error_from_wire(data.draw(messages(pb.Error.DESCRIPTOR))), WispError)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("no such thing", "slo"),
        ServerBusy("later", 2.5),
        ModelMismatch("m"),
        VersionMismatch("v"),
        VocabularyMismatch("w"),
        SessionLost("l"),
        SessionFenced("f"),
        ConnectionLost("draining"),
        ProtocolError("p"),
        EngineError("broken"),
    ],
)
def test_errors_survive_the_wire(error: WispError) -> None:
    """Kind, text and what goes with it."""
    message = pb.Error.FromString(frames.error_to_wire(3, 4, error).SerializeToString())
    assert (message.session, message.epoch) == (3, 4)
    again = frames.error_from_wire(message)
    assert (type(again), str(again)) == (type(error), str(error))
    for name in ("field", "retry_after"):
        assert getattr(again, name, None) == getattr(error, name, None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tokens": [1, 2]}, "q must have one"),
        ({"q": [pb.SparseQ(ids=[1], weights=[0])]}, "1..65535"),
        ({"q": [pb.SparseQ(ids=[1, 1], weights=[1, 1])]}, "twice"),
        ({"q": [pb.SparseQ(ids=[1], weights=[])]}, "as many weights"),
        ({"q": [pb.SparseQ(ids=[2], weights=[1])]}, "no weight"),
        ({"q": [pb.SparseQ(ids=[1, VOCABULARY], weights=[1, 1])]}, "beyond the vocabulary"),
        ({"survival": b"12"}, "one byte per drafted token"),
    ],
)
def test_a_wrong_draft_is_named(change: dict[str, object], complaint: str) -> None:
    """Each bound has words of its own."""
    values: dict[str, object] = {"tokens": [1], "q": [pb.SparseQ(ids=[1], weights=[1])], **change}
    with pytest.raises(ProtocolError, match=complaint):
        frames.draft_from_wire(pb.Draft(**values), VOCABULARY)  # type: ignore[arg-type]


def test_a_server_that_does_not_price_plain_decoding_means_a_position_and_a_round() -> None:
    """For one token."""
    told = frames.verdict_from_wire(pb.Verdict(price_per_position=0.25, price_per_round=0.5))
    assert told.hints.prices == Prices(0.25, 0.5, per_plain_token=0.75, plain_tokens=1.0)


def test_acceptance_rules_of_a_newer_server_are_left_out() -> None:
    """The ones that both know remain."""
    wire = [*frames.rules_to_wire(AcceptanceRule), 99]
    assert frames.rules_from_wire(wire) == tuple(AcceptanceRule)  # type: ignore[arg-type]
