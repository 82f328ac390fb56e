"""Non-negative least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.calibration.nnls import nonnegative_least_squares


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 30))
def test_the_solution_is_optimal(seed: int, num_columns: int, num_rows: int) -> None:
    """Karush-Kuhn-Tucker: no coefficient negative, no column left out that would help, none kept that could do better."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_rows, num_columns)) + rng.uniform(-1.0, 1.0)
    values = rng.standard_normal(num_rows)
    found, residual = nonnegative_least_squares(rows, values)
    gradient = rows.T @ (rows @ found - values)
    assert (found >= 0.0).all()
    assert (gradient >= -1e-6).all()
    assert np.abs(gradient * found).max() < 1e-6
    assert residual == pytest.approx(float(np.linalg.norm(rows @ found - values)))


def test_coefficients_are_found_again() -> None:
    """Whatever the units of the columns; a column of zeros gets none."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.5, 1.0, (40, 4)) * np.array([1.0, 1e6, 0.0, 1e3])
    truth = np.array([0.25, 1e-9, 0.0, 2e-3])
    found, residual = nonnegative_least_squares(rows, rows @ truth)
    assert found == pytest.approx(truth, rel=1e-5)
    assert residual < 1e-6


def test_columns_that_say_the_same_share_their_coefficient() -> None:
    """Rather than making the system unsolvable."""
    column = np.array([[1.0], [2.0], [3.0]])
    found, residual = nonnegative_least_squares(np.hstack([column, column]), column[:, 0])
    assert found.sum() == pytest.approx(1.0)
    assert residual < 1e-6
