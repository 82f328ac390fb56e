"""Whose tokens are in the KV pool: open sessions, and closed ones that are kept until the room is needed.

A session that begins takes its cached prefix from where the longest one lies: its own former self, a closed session
(taken over), or an open one (copied). Prefixes never cross from one owner to another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from wisp.engines.packed.kv import KVPool, KVSequence, PoolFull
from wisp.types import TokenId

WORTH_COPYING = 16
"""Shorter prefixes are computed again sooner than found."""


@dataclass(slots=True, eq=False)
class Resident:
    """A token history and the KV cache of a prefix of it."""

    owner: str
    tokens: Sequence[TokenId]
    """At least as many as are cached; the holder may append to it."""
    sequence: KVSequence = field(default_factory=KVSequence)

    @property
    def num_cached(self) -> int:
        return self.sequence.length


class Residency:
    """The residents of one KV pool."""

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool
        self._open: dict[Hashable, Resident] = {}
        self._closed: OrderedDict[int, Resident] = OrderedDict()  # longest unused first

    def open(self, key: Hashable, owner: str, tokens: Sequence[TokenId]) -> Resident:
        """Begin a resident under `key`, with the longest cached prefix of all tokens but the last."""
        if key in self._open:
            self.close(key)
        resident = self._open[key] = Resident(owner, tokens)
        if not self._take_over(resident):
            self._copy(resident, len(tokens) - 1)
        return resident

    def share(self, resident: Resident, limit: int) -> None:
        """Give a resident with nothing cached the longest prefix, of at most `limit` tokens, that another one has."""
        if resident.num_cached == 0 and limit >= WORTH_COPYING:
            self._copy(resident, limit)

    def close(self, key: Hashable) -> None:
        """End a resident, but keep what it has cached for later ones."""
        resident = self._open.pop(key)
        if resident.num_cached:
            self._pool.truncate(resident.sequence, resident.num_cached)
            self._closed[id(resident)] = resident

    def make_room(self, growth: Sequence[tuple[KVSequence, int]], spare: Iterable[Resident] = ()) -> None:
        """Free closed residents, then those of `spare`, in order, until `growth` fits; raises PoolFull if it doesn't."""
        victims = chain(list(self._closed.values()), spare)
        while not self._pool.fits(growth):
            victim = next(victims, None)
            if victim is None:
                raise PoolFull(
                    f"the KV pool is full: open sessions hold {self._pool.used_tokens} of {self._pool.capacity_tokens} "
                    f"tokens, and {len(growth)} of them are to grow to {sum(length for _, length in growth)} in all, "
                    f"each in units of {self._pool.page_tokens}: evict some first, or give the cache more memory"
                )
            self._drop(victim)

    def shutdown(self) -> None:
        """Free everything."""
        for resident in [*self._open.values(), *self._closed.values()]:
            self._drop(resident)
        self._open.clear()

    def _drop(self, resident: Resident) -> None:
        self._pool.truncate(resident.sequence, 0)
        self._closed.pop(id(resident), None)

    def _take_over(self, resident: Resident) -> bool:
        """Become the closed resident with the longest common prefix, unless most of what it has would be lost."""
        limit = len(resident.tokens) - 1
        best, length = _longest(self._closed.values(), resident, limit)
        if best is None or 2 * length < best.num_cached or _longest(self._open.values(), resident, limit)[1] > length:
            return False
        del self._closed[id(best)]
        resident.sequence = best.sequence
        self._pool.truncate(resident.sequence, length)
        return True

    def _copy(self, resident: Resident, limit: int) -> None:
        """Copy the longest common prefix of any resident, as far as there is room."""
        others = chain(self._open.values(), self._closed.values())
        source, length = _longest(others, resident, limit)
        if source is None or length < WORTH_COPYING:
            return
        self._closed.pop(id(source), None)  # not to be freed while it is copied
        try:
            self.make_room([(resident.sequence, length)])
            self._pool.copy(source.sequence, resident.sequence, length)
        except PoolFull:
            return
        finally:
            if not any(source is other for other in self._open.values()):
                self._closed[id(source)] = source


def common_prefix(a: Sequence[TokenId], b: Sequence[TokenId], limit: int) -> int:
    """How many of the first `limit` tokens of two histories are the same."""
    limit = min(limit, len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low = 0  # a[:low] == b[:low]; the first difference is before `limit`
    while limit - low > 1:
        middle = (low + limit) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            limit = middle
    return low


def _longest(others: Iterable[Resident], resident: Resident, limit: int) -> tuple[Resident | None, int]:
    """Which other resident of the same owner has the longest cached prefix in common, and how long it is."""
    best, length = None, 0
    for other in others:
        if other is resident or other.owner != resident.owner or other.num_cached <= length:
            continue
        common = common_prefix(other.tokens, resident.tokens, min(limit, other.num_cached))
        if common > length:
            best, length = other, common
    return best, length
