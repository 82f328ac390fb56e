"""Products of 9 to 15 rows are computed with 16 where that is faster: in float32, on a CPU, with large weights.

Below 16 rows MKL's kernels get dearer with every third row, from 16 on others read a weight once: on 768 x 2,048 weights
12 rows take 1.2 times as long as 16, on 768 x 32,000 they take 1.8 times as long, 15 rows 2.3 times. Small weights gain
nothing. Without this, a step of 15 rows on an 85M model takes 1.3 times as long, one of 10 rows 1.07 times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

ROWS = range(9, 16)
_SMALLEST = 1 << 20
"""Elements of a weight."""


def pad_few_rows(model: torch.nn.Module) -> None:
    """Make the linear layers of `model` that gain from it compute with 16 rows where they are given almost as many."""
    layers: list[Any] = [module for module in model.modules() if type(module) is torch.nn.Linear]
    for layer in layers:
        if _gains(layer.weight):
            layer.forward = _Padded(layer.forward)


def _gains(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= _SMALLEST


class _Padded:
    """A row-wise function of [..., rows, size]."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, rows: Tensor) -> Tensor:
        num_rows = rows.shape[-2]
        if num_rows not in ROWS:
            product: Tensor = self._function(rows)
            return product
        padded: Tensor = self._function(F.pad(rows, (0, 0, 0, ROWS.stop - num_rows)))
        return padded[..., :num_rows, :]
