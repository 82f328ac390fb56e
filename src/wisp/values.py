"""Values that are built for every round: frozen for the type checker, plain when they run.

A frozen dataclass sets each field through `object.__setattr__`: one of eight fields takes three times as long to build
as a plain one, and a round builds ten of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

__all__ = ["value"]

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value(*, frozen, slots):
        """A dataclass whose fields only the type checker guards; hashed by value, as a frozen one is."""
        return dataclass(slots=slots, unsafe_hash=frozen)
