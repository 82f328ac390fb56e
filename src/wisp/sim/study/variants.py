"""Systems that only studies know: the paper's baselines as we read them, and estimators that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.estimator import BatchTimeEstimator
from wisp.policy.scheduler import FCFSScheduler, Scheduler
from wisp.policy.slo_aware import SLOAwareScheduler
from wisp.policy.static_batches import StaticBatchScheduler
from wisp.policy.systems import SYSTEMS, SchedulerTerms, System

FLUSH_TIME = 0.1
"""Seconds after which a static batch starts although it is not full."""


def _capped(max_requests: int, terms: SchedulerTerms) -> Scheduler:
    return FCFSScheduler(replace(terms.limits, max_batch_requests=max_requests))


def _static(size: int, terms: SchedulerTerms) -> Scheduler:
    return StaticBatchScheduler(terms.limits, size=size, flush_time=FLUSH_TIME)


class BiasedEstimator:
    """An estimator that learns as it should, and says `factor` times what it knows."""

    def __init__(self, inner: BatchTimeEstimator, factor: float) -> None:
        self._inner = inner
        self._factor = factor

    @property
    def model(self) -> BatchTimeModel:
        inner = self._inner.model
        return inner.with_coefficients(self._factor * one for one in inner.coefficients)

    def predict(self, shape: BatchShape) -> float:
        """Seconds, biased."""
        return self._factor * self._inner.predict(shape)

    def upper(self, shape: BatchShape) -> float:
        """Seconds that a batch would exceed once in twenty times, biased."""
        return self._factor * self._inner.upper(shape)

    def observe(self, shape: BatchShape, elapsed: float) -> None:
        """Learn, unbiased."""
        self._inner.observe(shape, elapsed)


def _biased(name: str, factor: float, terms: SchedulerTerms) -> Scheduler:
    scheduler = SYSTEMS[name].scheduler(terms)
    assert isinstance(scheduler, SLOAwareScheduler), "only SLO-aware schedulers estimate"
    scheduler.estimate_by(lambda estimator: BiasedEstimator(estimator, factor))
    return scheduler


def biased(name: str, factor: float) -> System:
    """WISP or WISP+ with an estimator of the target's batches that says `factor` times the truth."""
    return replace(
        SYSTEMS[name],
        caption=f"{SYSTEMS[name].caption}, batch times estimated {factor:g} times",
        scheduler=partial(_biased, name, factor),
    )


READINGS: Mapping[str, System] = {
    "centralized-16": replace(
        SYSTEMS["centralized"], caption="plain decoding of 16 sequences at a time", scheduler=partial(_capped, 16)
    ),
    "sled-4": replace(
        SYSTEMS["sled"],
        caption="confidence threshold of 0.5, static batches of 4",
        scheduler=partial(_static, 4),
        threshold=0.5,
    ),
}
"""Of the paper's baselines: with these two of its goodput figures come out together."""
