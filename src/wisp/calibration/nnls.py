"""Least squares with coefficients that are not negative, exact, for the few coefficients of a batch-time model.

min |A x - b|, x >= 0.  At the optimum x is the unconstrained solution on the columns where it is positive, so all
2^n sets of columns are solved at once, and the best of the solutions that are not negative is taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_DAMPING = 1e-12
"""Of the squared length of a column: columns that say the same share their coefficient."""


def nonnegative_least_squares(rows: Array, values: Array) -> tuple[Array, float]:
    """The x [n] and |A x - b|, for A [m, n], b [m]; n of up to 12 or so."""
    lengths = np.linalg.norm(rows, axis=0)
    lengths[lengths == 0.0] = 1.0
    columns = rows / lengths
    count = columns.shape[1]
    chosen = (np.arange(1 << count)[:, None] >> np.arange(count)) & 1
    gram, projected = columns.T @ columns, columns.T @ values
    systems = gram * chosen[:, :, None] * chosen[:, None, :] + np.eye(count) * (1.0 - chosen + _DAMPING)[:, :, None]
    solutions = np.linalg.solve(systems, (chosen * projected)[:, :, None])[:, :, 0]
    possible = solutions[(solutions >= 0.0).all(axis=1)]
    gains = 2.0 * possible @ projected - np.einsum("si,ij,sj->s", possible, gram, possible)
    best = possible[np.argmax(gains)]
    return best / lengths, float(np.linalg.norm(columns @ best - values))
