"""How long a verification batch takes, from its composition alone (paper: verification time estimator).

    V_hat(B) = a + b*N + b2*max(0, N - ridge) + c*Q + d*C + e*|B| + f*[N > few]      every coefficient >= 0

    N = sum(new)                          num_new        positions computed
    Q = sum(new * (cached + new/2))       num_attended   pairs of a position and a token it attends to
    C = sum(cached)                       num_cached     cached tokens that are read
    |B|                                   num_requests

Below the ridge a batch is bound by reading the weights and one more position costs b; above it b + b2. Products of a
matrix and one vector, or a few, have kernels of their own: beyond these, batches cost f more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import hypot

from wisp.types import Batch
from wisp.values import value


@value(frozen=True, slots=True)
class BatchShape:
    """What of a batch's composition its time depends on."""

    num_new: int = 0
    num_attended: float = 0.0
    num_cached: int = 0
    num_requests: int = 0

    @classmethod
    def of(cls, batch: Batch) -> BatchShape:
        """The shape of what a scheduler put together."""
        num_new = num_cached = 0
        num_attended = 0.0
        for one in batch.members:
            new, cached, verified = one.num_prefill_tokens, one.request.num_cached_tokens, one.num_verified
            if verified is not None:
                new += 1 + verified
            num_new += new
            num_cached += cached
            num_attended += new * (cached + new / 2)
        return cls(num_new, num_attended, num_cached, len(batch.members))

    @classmethod
    def of_members(cls, members: Iterable[tuple[int, int]]) -> BatchShape:
        """From (new, cached) tokens of each member."""
        num_new = num_cached = num_requests = 0
        num_attended = 0.0
        for new, cached in members:
            num_new += new
            num_cached += cached
            num_attended += new * (cached + new / 2)
            num_requests += 1
        return cls(num_new, num_attended, num_cached, num_requests)

    def plus(self, num_new: int, num_cached: int) -> BatchShape:
        """The shape with one more request."""
        return BatchShape(
            self.num_new + num_new,
            self.num_attended + num_new * (num_cached + num_new / 2),
            self.num_cached + num_cached,
            self.num_requests + 1,
        )


BatchTime = Callable[[BatchShape], float]
"""Seconds that a batch of some shape takes: a hardware model, or `BatchTimeModel.predict`."""


@dataclass(frozen=True, slots=True)
class BatchTimeModel:
    """The coefficients, in seconds; the default is of a small model on a slow machine."""

    fixed_s: float = 0.005
    """a: reading the weights, launching kernels."""
    per_token_s: float = 2e-4
    """b: of each position."""
    per_token_above_ridge_s: float = 0.0
    """b2: added for each position above the ridge."""
    per_attended_s: float = 0.0
    """c"""
    per_cached_s: float = 0.0
    """d"""
    per_request_s: float = 0.0
    """e"""
    ridge_tokens: float = 0.0
    """Positions from which on a batch is bound by computing them; meaningless where b2 is 0."""
    per_batch_of_several_s: float = 0.0
    """f: added where there are more positions than a few."""
    few_tokens: float = 1.0
    """Positions that kernels for few of them compute; meaningless where f is 0."""

    def with_coefficients(self, coefficients: Iterable[float]) -> BatchTimeModel:
        """With other a, b, b2, c, d, e, f, and the same ridge and few."""
        a, b, b2, c, d, e, f = (float(value) for value in coefficients)
        return BatchTimeModel(a, b, b2, c, d, e, self.ridge_tokens, f, self.few_tokens)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """a, b, b2, c, d, e, f."""
        return (
            self.fixed_s,
            self.per_token_s,
            self.per_token_above_ridge_s,
            self.per_attended_s,
            self.per_cached_s,
            self.per_request_s,
            self.per_batch_of_several_s,
        )

    def features(self, shape: BatchShape) -> tuple[float, ...]:
        """What the coefficients are multiplied with."""
        num_new = shape.num_new
        above, several = max(0.0, num_new - self.ridge_tokens), 1.0 if num_new > self.few_tokens else 0.0
        return 1.0, num_new, above, shape.num_attended, shape.num_cached, shape.num_requests, several

    def predict(self, shape: BatchShape) -> float:
        """Seconds that a batch of this shape takes."""
        num_new, ridge = shape.num_new, self.ridge_tokens
        return (
            self.fixed_s
            + self.per_token_s * num_new
            + (self.per_token_above_ridge_s * (num_new - ridge) if num_new > ridge else 0.0)
            + self.per_attended_s * shape.num_attended
            + self.per_cached_s * shape.num_cached
            + self.per_request_s * shape.num_requests
            + (self.per_batch_of_several_s if num_new > self.few_tokens else 0.0)
        )

    def marginal_position_time(self, shape: BatchShape) -> float:
        """dT/dn: seconds that one more position adds to a batch of this shape.

        The corner at the ridge is soft, as where reading and computing overlap: hypot(ridge, N).
        """
        mean_cached = shape.num_cached / shape.num_requests if shape.num_requests else 0.0
        share = shape.num_new / max(hypot(self.ridge_tokens, shape.num_new), 1.0)
        return self.per_token_s + self.per_token_above_ridge_s * share + self.per_attended_s * mean_cached

    def round_time(self, num_cached: float) -> float:
        """Seconds that a request on `num_cached` tokens costs before its first position: reading its cache, overhead."""
        return self.per_request_s + self.per_cached_s * num_cached

    def large_position_time(self, num_cached: float) -> float:
        """dT/dn of a request with so many cached tokens in a large batch."""
        return self.per_token_s + self.per_token_above_ridge_s + self.per_attended_s * num_cached
