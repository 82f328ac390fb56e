"""What runs inside vLLM's workers, without vLLM."""

from __future__ import annotations

import numpy as np
import torch

from wisp.engines.vllm.sampler import LogitsRows


def test_logits_are_computed_of_the_last_position_and_the_draft() -> None:
    """Five requests of 4, 100, 3, 100 and 2 positions, of which 3, 0, 2, 0 and 1 are drafted."""
    drafted, ends = np.array([3, 0, 2, 0, 1], np.int32), np.array([4, 104, 107, 207, 209], np.int32)
    rows = LogitsRows.of(torch.device("cpu"), drafted, ends)
    assert rows.logits_indices.tolist() == [0, 1, 2, 3, 103, 104, 105, 106, 206, 207, 208]
