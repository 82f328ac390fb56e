"""Batch-invariant arithmetic: every matrix product is made of blocks of 16 rows, whatever the batch.

In bf16 a product of one row and one of several rows round differently, so that a verified token may differ from the
one that one-token decoding gives wherever two are nearly tied. With all linear layers on blocks of a fixed size (and
attention one query row at a time) a row's result no longer depends on its neighbours. The price: a batch of one token
computes sixteen, weights are read once per block, and attention makes a call per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from wisp.errors import UnsupportedModel

BLOCK_ROWS = 16


def pad_products(model: Any) -> None:
    """Make the linear layers of `model` compute in blocks; raises UnsupportedModel for mixtures of experts."""
    if any("experts" in name for name, _ in model.named_parameters()):
        raise UnsupportedModel(
            f"{type(model).__name__} has no batch-invariant mode: the batches of its experts depend on the routing"
        )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            module.forward = _Blocks(module.forward)


class _Blocks:
    """A row-wise function, called on blocks of a fixed number of rows."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        padded = F.pad(flat, (0, 0, 0, -len(flat) % BLOCK_ROWS))
        product = torch.cat([self._function(block) for block in torch.split(padded, BLOCK_ROWS)])[: len(flat)]
        return product.view(*rows.shape[:-1], product.shape[-1])
