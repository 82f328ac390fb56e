"""The form of the estimator: what a batch's time depends on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.types import Batch, BatchMember, VerificationRequest

MODEL = BatchTimeModel(1.0, 0.5, 0.25, 0.125, 0.0625, 4.0, ridge_tokens=8.0, per_batch_of_several_s=3.0, few_tokens=2.0)
MEMBERS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 500)), max_size=8)


def test_a_shape_sums_up_its_members() -> None:
    """Each position attends to what is cached and to half of the new ones."""
    request = VerificationRequest("a", 1, 101, 100, 3, 0.0)
    chunk = VerificationRequest("b", 1, 51, 0, 3, 0.0)
    batch = Batch((BatchMember(request, 0, 3), BatchMember(chunk, 20, None)))
    assert BatchShape.of(batch) == BatchShape(24, 4 * 102 + 20 * 10, 100, 2)


def test_the_time_is_linear_with_a_hinge() -> None:
    """T = a + b N + b2 max(0, N - ridge) + c Q + d C + e |B| + f [N > few]."""
    assert MODEL.predict(BatchShape(10, 16.0, 32, 2)) == 1.0 + 5.0 + 0.5 + 2.0 + 2.0 + 8.0 + 3.0
    assert MODEL.predict(BatchShape(2, 16.0, 32, 1)) == 1.0 + 1.0 + 2.0 + 2.0 + 4.0


@given(MEMBERS)
def test_features_and_coefficients_give_the_prediction(members: list[tuple[int, int]]) -> None:
    """The two ways to compute it agree, and coefficients make the trip to a tuple and back."""
    shape = BatchShape.of_members(members)
    product = sum(a * b for a, b in zip(MODEL.coefficients, MODEL.features(shape), strict=True))
    assert MODEL.predict(shape) == pytest.approx(product)
    assert MODEL.with_coefficients(MODEL.coefficients) == MODEL


def test_one_more_position_costs_what_its_batch_makes_of_it() -> None:
    """Cheap below the ridge, dearer above it and on long contexts."""
    ridge = round(MODEL.ridge_tokens)
    below, at, above = BatchShape(0, 0.0, 0, 0), BatchShape(ridge, 0.0, 0, 0), BatchShape(10**6, 0.0, 40, 4)
    assert MODEL.marginal_position_time(below) == 0.5
    assert MODEL.marginal_position_time(at) == pytest.approx(0.5 + 0.25 / 2**0.5)
    assert MODEL.marginal_position_time(above) == pytest.approx(0.5 + 0.25 + 0.125 * 10)
    assert MODEL.large_position_time(10) == 0.5 + 0.25 + 0.125 * 10


def test_a_round_costs_its_request_and_its_cache() -> None:
    """Before its first position."""
    assert MODEL.round_time(16) == 4.0 + 1.0
