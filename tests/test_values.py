"""Values of every round."""

from __future__ import annotations

from dataclasses import replace

from wisp.types import BatchMember, Prices, VerificationRequest


def test_values_are_compared_and_hashed_by_what_they_hold() -> None:
    """As frozen dataclasses are."""
    assert Prices(0.1, 0.2) == Prices(0.1, 0.2) != Prices(0.2, 0.1)
    assert len({Prices(0.1, 0.2), Prices(0.1, 0.2), Prices(0.2, 0.1)}) == 2


def test_a_changed_value_is_another_one() -> None:
    """The one that it was made from stays as it is."""
    member = BatchMember(VerificationRequest("s", 1, 10, 9, 2, 0.0), 0, 2)
    assert replace(member, num_verified=1).num_new_tokens == 2
    assert member.num_new_tokens == 3


def test_values_have_no_room_for_anything_else() -> None:
    """Slots: small, and quick to build."""
    assert not hasattr(Prices(), "__dict__")
