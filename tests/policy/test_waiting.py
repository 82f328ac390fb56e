"""The queue's orders stay true while requests come, change and go."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.waiting import Order, WaitingRequests
from wisp.types import VerificationRequest


def request(name: str, deadline: float = inf, cached: int = 4, draft: int = 2) -> VerificationRequest:
    return VerificationRequest(name, 1, 10, cached, draft, 0.0, deadline=deadline)


def test_equals_leave_in_the_order_of_their_arrival() -> None:
    """Whatever their names."""
    order = Order()
    for place, name in enumerate("cab"):
        order.put(name, 1.0, place)
    assert list(order.drain()) == ["c", "a", "b"]
    assert list(order.drain()) == []
    order.put_back()
    assert list(order.drain(1.0)) == ["c", "a", "b"]


def test_draining_stops_at_a_key() -> None:
    """What comes later stays, and is the first then."""
    order = Order()
    order.put("a", 1.0, 1)
    order.put("b", 2.0, 2)
    assert order.first_key == 1.0
    assert list(order.drain(1.5)) == ["a"]
    assert order.first_key == 2.0
    order.discard("b")
    assert order.first_key == inf


def test_what_moved_often_does_not_pile_up() -> None:
    """Stale entries are cleared out when there are many."""
    order = Order()
    for number in range(500):
        order.put("a", -number, number)
    order.put_back()
    assert len(order._sorted) <= 2 + 64
    assert list(order.drain()) == ["a"]


def test_tokens_and_lanes_are_kept() -> None:
    """Positions are counted as requests come, progress and go; a request that is given up is in one lane only."""
    waiting = WaitingRequests()
    waiting.add(request("a"), 1.0, inf)
    waiting.add(request("b"), 2.0, inf)
    assert (len(waiting), waiting.num_tokens, waiting.num_prefill_tokens) == (2, 16, 10)
    waiting.update(request("a", cached=9), 3.0)
    assert (waiting.num_tokens, waiting.num_prefill_tokens) == (11, 5)
    assert list(waiting.by_density.drain()) == ["a", "b"]
    waiting.put_back()
    waiting.give_up("a")
    waiting.update(request("a", cached=0), 9.0)
    assert (list(waiting.late), list(waiting.by_density.drain())) == (["a"], ["b"])
    waiting.remove("a")
    waiting.remove("a")
    assert (list(waiting.requests), list(waiting.late), waiting.num_tokens) == (["b"], [], 8)
    assert waiting.num_prefill_tokens == 5


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["add", "update", "remove", "drain"]), st.sampled_from("abcde"), st.integers(0, 3)),
    max_size=300,
)


@given(OPERATIONS)
def test_orders_equal_a_sort(operations: list[tuple[str, str, int]]) -> None:
    """After any history, and in bounded memory."""
    waiting, density, places = WaitingRequests(), {}, {}
    for number, (what, name, value) in enumerate(operations):
        if what == "add":
            waiting.add(request(name, deadline=value), value, value)
            density[name], places[name] = value, number
        elif what == "update" and name in density:
            waiting.update(waiting.requests[name], value)
            density[name] = value
        elif what == "remove":
            waiting.remove(name)
            density.pop(name, None)
        elif what == "drain":
            next(waiting.by_density.drain(), None)
            next(waiting.by_deadline.drain(), None)
            waiting.put_back()
    assert list(waiting.requests) == sorted(density, key=lambda one: places[one])
    expected = sorted(density, key=lambda one: (-density[one], places[one]))
    assert list(waiting.by_density.drain()) == expected
    waiting.put_back()
    assert len(waiting.by_density._sorted) <= 2 * len(density) + 64
    by_deadline = sorted(density, key=lambda one: (waiting.requests[one].deadline, places[one]))
    assert list(waiting.by_deadline.drain()) == by_deadline
