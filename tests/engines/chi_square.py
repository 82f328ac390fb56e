"""Pearson's chi-square test, with the tail probability from torch: scipy is no dependency of the project."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

FALSE_ALARM = 1e-5
"""Below this probability a test of a distribution fails; seeds are fixed, so it does not fail by chance tomorrow."""


def p_value(counts: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """How likely counts as far from N * probabilities as these are; 0 if something impossible happened.

    Cells that expect fewer than five are merged into one.
    """
    counts, probabilities = np.ravel(counts).astype(float), np.ravel(probabilities).astype(float)
    assert abs(probabilities.sum() - 1.0) < 1e-9
    if counts[probabilities == 0.0].any():
        return 0.0
    expected = probabilities * counts.sum()
    rare = expected < 5.0
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    cells = expected > 0.0
    statistic = ((counts[cells] - expected[cells]) ** 2 / expected[cells]).sum()
    freedom = max(int(cells.sum()) - 1, 1)
    return float(torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(statistic / 2)))
