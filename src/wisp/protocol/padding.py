"""Frames filled up to a few sizes: under TLS their lengths are all that a listener sees, and they tell prompts apart."""

from __future__ import annotations

SMALLEST = 64
LARGE = 64 << 10
"""Above this, sizes are multiples of it; below, powers of two."""
_TAG = bytes([15 << 3 | 2])
_OVERHEAD = 4


def padded(frame: bytes) -> bytes:
    """A serialised DeviceFrame or ServerFrame with its `padding` field filled; deterministic."""
    length = bucket(len(frame) + _OVERHEAD) - len(frame) - _OVERHEAD
    # The length always takes three bytes: a shorter varint would make some sizes impossible to hit.
    prefix = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
    return frame + _TAG + prefix + bytes(length)


def bucket(size: int) -> int:
    """The size that a frame of at least `size` bytes is filled to."""
    if size <= SMALLEST:
        return SMALLEST
    return -(-size // LARGE) * LARGE if size > LARGE else 1 << (size - 1).bit_length()
