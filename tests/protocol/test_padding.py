"""Padding changes the size of a frame and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.messages import messages
from wisp.protocol import MAX_FRAME_BYTES
from wisp.protocol import wisp_pb2 as pb
from wisp.protocol.padding import LARGE, bucket, padded


@given(messages(pb.ServerFrame.DESCRIPTOR))
def test_a_padded_frame_is_read_as_it_was(frame: pb.ServerFrame) -> None:
    """By a parser that knows nothing of how it was padded; its size is one of a few."""
    data = padded(frame.SerializeToString())
    assert len(data) == bucket(len(data))
    again = pb.ServerFrame.FromString(data)
    for one in (again, frame):
        one.ClearField("padding")
    assert again.SerializeToString(deterministic=True) == frame.SerializeToString(deterministic=True)


@given(st.integers(0, 3 * LARGE))
def test_every_length_can_be_filled_exactly(size: int) -> None:
    """Small ones to powers of two, large ones to multiples of 64 KiB."""
    data = padded(bytes(size))
    assert len(data) == bucket(size + 4)
    assert size + 4 <= len(data) <= max(64, 2 * (size + 4), size + 4 + LARGE)


def test_sizes_are_few_and_stay_within_the_limit() -> None:
    """A listener tells fewer than a hundred sizes apart."""
    sizes = {bucket(size) for size in range(0, MAX_FRAME_BYTES - 4, 1000)}
    assert len(sizes) < 100
    assert max(sizes) == MAX_FRAME_BYTES
    assert min(sizes) == 64
