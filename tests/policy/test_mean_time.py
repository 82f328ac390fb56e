"""The estimator without features."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.batch_time import BatchShape
from wisp.policy.mean_time import MeanBatchTime


@given(times=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=50))
def test_all_batches_take_as_long(times: list[float]) -> None:
    """Within what was measured, whatever is in the batch."""
    estimator = MeanBatchTime(times[0])
    for elapsed in times:
        estimator.observe(BatchShape(1, 1.0, 1, 1), elapsed)
    small, large = BatchShape(1, 1.0, 0, 1), BatchShape(512, 1e6, 4096, 64)
    assert estimator.predict(small) == estimator.predict(large) == estimator.upper(large)
    assert min(times) * 0.999 <= estimator.predict(small) <= max(times) * 1.001
