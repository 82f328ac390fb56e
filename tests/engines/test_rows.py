"""Products of almost 16 rows."""

from __future__ import annotations

import pytest
import torch

from wisp.engines.packed.rows import ROWS, pad_few_rows

LARGE = (1024, 1024)


def rows_computed(layer: torch.nn.Linear, num_rows: int) -> int:
    """How many rows the layer's product has when it is given `num_rows`."""
    seen: list[int] = []
    inner = layer.forward

    def watched(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.shape[-2])
        return inner(rows)

    layer.forward = watched  # type: ignore[method-assign]
    pad_few_rows(layer)
    assert layer(torch.zeros(1, num_rows, layer.in_features, dtype=layer.weight.dtype)).shape[-2] == num_rows
    (computed,) = seen
    return computed


@pytest.mark.parametrize(("num_rows", "computed"), [(1, 1), (8, 8), (9, 16), (15, 16), (16, 16), (17, 17)])
def test_almost_16_rows_are_computed_as_16(num_rows: int, computed: int) -> None:
    """Others as they are."""
    assert rows_computed(torch.nn.Linear(*LARGE), num_rows) == computed


@pytest.mark.parametrize(("size", "dtype"), [((1024, 1023), torch.float32), (LARGE, torch.bfloat16)])
def test_layers_that_gain_nothing_are_left_alone(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Small ones, and other types."""
    assert rows_computed(torch.nn.Linear(*size, dtype=dtype), ROWS.start) == ROWS.start


def test_the_rows_that_were_asked_for_come_back() -> None:
    """With the values that they have without padding, whatever leads the shape."""
    layer, rows = torch.nn.Linear(*LARGE), torch.randn(2, 11, LARGE[0])
    expected = layer(rows)
    pad_few_rows(layer)
    assert torch.allclose(layer(rows), expected, atol=1e-5)
