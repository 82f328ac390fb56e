"""Which of several verifiers a session is opened on.

least-loaded   the one with the fewest sessions, the first among equals
hash           the one with the highest hash of (key, verifier): a device always meets the same one, and when a
               verifier is lost only its own sessions move (rendezvous hashing)
two-choices    of the two with the highest hashes the one with fewer sessions: nearly as even as the first, with two
               loads to know instead of all
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

Loads = Sequence[int | None]
"""Sessions that each verifier has; None: it is down."""
Placement = Callable[[str, Loads], int | None]
"""(key of the session's device, loads) to the verifier's index; None: all are down."""


def least_loaded(key: str, loads: Loads) -> int | None:
    """The verifier with the fewest sessions."""
    up = [load for load in loads if load is not None]
    return loads.index(min(up)) if up else None


def by_hash(key: str, loads: Loads) -> int | None:
    """Always the same verifier for the same key, as long as it is up."""
    return max(_up(loads), key=lambda index: _hash(key, index), default=None)


def two_choices(key: str, loads: Loads) -> int | None:
    """The less loaded of the two that the key's hashes prefer."""
    preferred = sorted(_up(loads), key=lambda index: _hash(key, index), reverse=True)[:2]
    return min(preferred, key=lambda index: loads[index] or 0, default=None)


def _up(loads: Loads) -> list[int]:
    return [index for index, load in enumerate(loads) if load is not None]


def _hash(key: str, index: int) -> bytes:
    return blake2b(f"{key}/{index}".encode(), digest_size=8).digest()


PLACEMENTS: Mapping[str, Placement] = {"least-loaded": least_loaded, "hash": by_hash, "two-choices": two_choices}
