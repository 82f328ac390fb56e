"""What is left of the estimator where its features are taken away: every batch takes as long as the recent ones did.

For the ablation "no estimator": the scheduler that asks it cannot tell a small batch from a large one.
"""

from __future__ import annotations

from wisp.policy.batch_time import BatchShape, BatchTimeModel

_SMOOTHING = 0.1


class MeanBatchTime:
    """The running mean of measured batch times, whatever is in them; see BatchTimeEstimator."""

    def __init__(self, initial_s: float) -> None:
        self.model = BatchTimeModel(fixed_s=initial_s, per_token_s=0.0)

    def predict(self, shape: BatchShape) -> float:
        return self.model.fixed_s

    def upper(self, shape: BatchShape) -> float:
        return self.model.fixed_s

    def observe(self, shape: BatchShape, elapsed: float) -> None:
        mean = self.model.fixed_s
        self.model = BatchTimeModel(fixed_s=mean + _SMOOTHING * (elapsed - mean), per_token_s=0.0)
